"""Networks, and what can be read of them without touching them."""
