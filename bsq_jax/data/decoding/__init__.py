"""Files to frames: pictures, animations, videos."""
