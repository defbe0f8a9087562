//! What the author of an advae plugin depends on.
