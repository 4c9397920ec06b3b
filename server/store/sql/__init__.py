"""Tables, and statements compiled once for each shape."""
