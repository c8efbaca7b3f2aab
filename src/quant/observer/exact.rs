//! Floats that come back as the same bits from any format: as text in formats that people read, since JSON has no infinity and
//! its parsers may be an ulp off; as they are in others.

use std::fmt::Debug;
use std::str::FromStr;

use serde::de::Error;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

pub(super) fn serialize<T: Serialize + Debug, S: Serializer>(x: &T, serializer: S) -> Result<S::Ok, S::Error> {
    match serializer.is_human_readable() {
        // Rust prints the shortest decimals that are read as the same float, and reads them exactly.
        true => serializer.collect_str(&format_args!("{x:?}")),
        false => x.serialize(serializer),
    }
}

pub(super) fn deserialize<'de, T: Deserialize<'de> + FromStr, D: Deserializer<'de>>(deserializer: D) -> Result<T, D::Error> {
    if !deserializer.is_human_readable() {
        return T::deserialize(deserializer);
    }
    let text = String::deserialize(deserializer)?;
    text.parse().map_err(|_| D::Error::custom(format!("`{text}` is no number")))
}
