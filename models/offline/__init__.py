"""Jobs over files instead of requests: the service's own way for an image, fed from folders and answered into files."""
