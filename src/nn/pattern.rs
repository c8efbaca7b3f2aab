//! The crate's one pattern language: globs on node names.

use std::fmt;

use crate::error::{Error, Result};

/// A glob: `*` stands for any run of characters (also none, also dots and slashes), `?` for exactly one, `\` takes the
/// next character literally. Everything else stands for itself, and the whole name must match.
///
/// ```
/// use lowprec::nn::Pattern;
/// assert!(Pattern::new("layer?.*.conv1")?.matches("layer2.0.conv1"));
/// assert!(!Pattern::new("conv")?.matches("conv1"));
/// assert!(Pattern::new(r"mul\*")?.matches("mul*"));
/// # Ok::<(), lowprec::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(into = "String", try_from = "String"))]
pub struct Pattern {
    text: String,
    parts: Vec<Part>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    Run,
    One,
    Exactly(char),
}

impl From<Pattern> for String {
    fn from(pattern: Pattern) -> String {
        pattern.text
    }
}

impl TryFrom<String> for Pattern {
    type Error = Error;

    fn try_from(text: String) -> Result<Pattern> {
        Pattern::new(&text)
    }
}

impl Pattern {
    /// Reads a pattern.
    ///
    /// # Errors
    /// [`Error::Parameter`] when it is empty or ends in a lone `\`.
    pub fn new(text: &str) -> Result<Self> {
        let (mut parts, mut chars) = (Vec::new(), text.chars());
        while let Some(c) = chars.next() {
            parts.push(match c {
                '*' => Part::Run,
                '?' => Part::One,
                '\\' => {
                    Part::Exactly(chars.next().ok_or_else(|| Error::parameter("pattern", text, "ends in a lone backslash: double it"))?)
                }
                c => Part::Exactly(c),
            });
        }
        if parts.is_empty() {
            return Err(Error::parameter("pattern", text, "an empty pattern matches no name: use * for all"));
        }
        Ok(Pattern { text: text.to_owned(), parts })
    }

    /// The pattern that matches this name and no other.
    ///
    /// # Errors
    /// [`Error::Parameter`] for an empty name.
    ///
    /// ```
    /// use lowprec::nn::Pattern;
    /// let pattern = Pattern::literal("/layer1/conv*")?;
    /// assert!(pattern.matches("/layer1/conv*") && !pattern.matches("/layer1/conv2"));
    /// # Ok::<(), lowprec::Error>(())
    /// ```
    pub fn literal(name: &str) -> Result<Self> {
        let escaped = name.chars().flat_map(|c| matches!(c, '*' | '?' | '\\').then_some('\\').into_iter().chain([c]));
        Pattern::new(&escaped.collect::<String>())
    }

    /// Whether the whole of `name` matches.
    pub fn matches(&self, name: &str) -> bool {
        let name: Vec<char> = name.chars().collect();
        // Greedy with one point of return: on a mismatch only the last `*` has to swallow one more character, so the
        // time is at most pattern length times name length.
        let (mut p, mut n, mut back) = (0, 0, None);
        while n < name.len() {
            match self.parts.get(p) {
                Some(Part::Run) => {
                    back = Some((p, n));
                    p += 1;
                }
                Some(Part::One) => (p, n) = (p + 1, n + 1),
                Some(Part::Exactly(c)) if *c == name[n] => (p, n) = (p + 1, n + 1),
                _ => {
                    let Some((run, at)) = back else { return false };
                    back = Some((run, at + 1));
                    (p, n) = (run + 1, at + 1);
                }
            }
        }
        self.parts[p..].iter().all(|part| *part == Part::Run)
    }

    /// The text it was read from.
    pub fn as_str(&self) -> &str {
        &self.text
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn globs() {
        let cases = [
            ("*", "", true),
            ("*", "a.b/c", true),
            ("a*b*c", "a-b-b-c", true),
            ("a*b*c", "a-b-b-d", false),
            ("*.conv?", "layer.conv1", true),
            ("*.conv?", "layer.conv12", false),
            ("conv", "conv", true),
            ("conv", "conv1", false),
            (r"a\?", "a?", true),
            (r"a\?", "ab", false),
            ("**a", "bba", true),
            ("?", "é", true),
        ];
        for (pattern, name, expected) in cases {
            assert_eq!(Pattern::new(pattern).unwrap().matches(name), expected, "{pattern} on {name}");
        }
        assert!(Pattern::new("").is_err());
        assert!(Pattern::new("a\\").is_err());
    }
}
