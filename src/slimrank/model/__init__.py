"""A causal LM as blocks of linears, and where it comes from."""
