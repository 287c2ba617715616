"""Files for people: PNG pictures, MP4 and Matroska videos, figures; and times of frames."""
