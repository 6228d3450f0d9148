"""Command lines and file formats of other projects, translated into the plain configuration. Only the CLI imports it."""
