"""From the bytes of an image file to 8-bit sRGB."""
