//! Files in and out. Bytes from outside are checked before anything is believed or allocated.

#[cfg(feature = "safetensors")]
pub mod safetensors;
