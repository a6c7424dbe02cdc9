"""How each operation is computed; what is computed is in `blocks`."""
