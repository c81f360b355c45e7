"""Generated dataset `shapes`: composition, rendering, and the VOC tree on disk."""
