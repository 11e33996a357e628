"""The page of `q2d2 demo`: `roundtrip` does the work, `pictures` draws it, `page` puts it into a browser."""
