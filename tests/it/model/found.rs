//! What the property has found, as small as it could be made.
