"""What happened to models, as data, as text and as a page."""
