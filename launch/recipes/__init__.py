"""Named settings, and the published numbers that belong to them."""
