"""What a run may spend: parameters, bytes, or seconds, and the timing of what its linears may become."""
