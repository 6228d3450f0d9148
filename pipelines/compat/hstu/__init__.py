"""Gin files of the HSTU training scripts: read, checked and translated into recipes of this project."""
