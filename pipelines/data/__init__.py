"""From raw files to sequences on disk: fetch, formats, prepare, store, splits, loader."""
