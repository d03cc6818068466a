"""Whether what is there is what its recipe says: verify, diff, reproduce."""
