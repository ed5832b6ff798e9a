"""What others rely on: compiled files, manifests, pages, packages, the directions of imports."""
