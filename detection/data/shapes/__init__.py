"""The generated dataset `shapes`."""
