"""What our trials are compared with."""
