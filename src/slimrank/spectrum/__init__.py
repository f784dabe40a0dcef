"""From moments to what every rank costs."""
