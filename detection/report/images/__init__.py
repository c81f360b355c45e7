"""Images with boxes drawn on them."""
