"""Content-addressed artifacts behind one port: `file://` and `s3://`."""
