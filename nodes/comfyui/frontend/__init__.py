"""Messages, previews and files for the frontend."""
