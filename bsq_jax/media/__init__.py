"""Pictures, videos and figures as files."""
