"""What a vendor tests a backend with."""
