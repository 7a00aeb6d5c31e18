"""The page that shows what arrives: files without a build step, and the path that feeds them."""
