//! The binary contract between the advae host and its plugins.
