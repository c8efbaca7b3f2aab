//! Codes of any number of bits, one after the other.

use crate::error::{Error, Result};

/// A list of codes of `bits` bits each: code `i` takes the bits from `i · bits` on, counted from the lowest bit of the first
/// byte, without gaps. So 2 and 4 bits lie as in [`U2`](crate::U2) and [`U4`](crate::U4), 8 and 16 as little-endian integers,
/// and eight codes of 3 bits take three bytes. Unused bits of the last byte are zero.
///
/// ```
/// use lowprec::quant::PackedCodes;
/// let codes = PackedCodes::new(3, [1, 2, 7, 0, 5])?;
/// assert_eq!(codes.as_bytes(), [0b11_010_001, 0b0101_000_1]);
/// assert_eq!(codes.iter().collect::<Vec<_>>(), [1, 2, 7, 0, 5]);
/// # Ok::<(), lowprec::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PackedCodes {
    bytes: Vec<u8>,
    bits: u32,
    len: usize,
}

impl PackedCodes {
    /// These codes.
    ///
    /// # Errors
    /// [`Error::Parameter`] for a number of bits other than 1 to 16, [`Error::Code`] for a code of more bits.
    pub fn new(bits: u32, codes: impl IntoIterator<Item = u32>) -> Result<Self> {
        check_bits(bits)?;
        let mut packed = PackedCodes { bytes: Vec::new(), bits, len: 0 };
        let (mut pending, mut filled) = (0u32, 0);
        for code in codes {
            if code >> bits != 0 {
                return Err(Error::Code { index: packed.len, value: code as i32, qmin: 0, qmax: (1 << bits) - 1 });
            }
            pending |= code << filled;
            filled += bits;
            packed.len += 1;
            while filled >= 8 {
                packed.bytes.push(pending as u8);
                (pending, filled) = (pending >> 8, filled - 8);
            }
        }
        if filled > 0 {
            packed.bytes.push(pending as u8);
        }
        packed.bytes.shrink_to_fit();
        Ok(packed)
    }

    /// Codes of at most as many bits, all of them known to be.
    pub(crate) fn of(bits: u32, codes: &[u16]) -> Self {
        let mut bytes = Vec::with_capacity((codes.len() * bits as usize).div_ceil(8));
        // Eight codes take as many bytes as a code has bits.
        for eight in codes.chunks(8) {
            let all = eight.iter().rev().fold(0u128, |all, &code| all << bits | u128::from(code));
            bytes.extend_from_slice(&all.to_le_bytes()[..(eight.len() * bits as usize).div_ceil(8)]);
        }
        PackedCodes { bytes, bits, len: codes.len() }
    }

    /// None yet, with room for so many.
    pub(crate) fn with_room(bits: u32, len: usize) -> Self {
        PackedCodes { bytes: Vec::with_capacity((len * bits as usize).div_ceil(8)), bits, len: 0 }
    }

    /// One more code, known to have no more bits.
    pub(crate) fn push(&mut self, code: u16) {
        let bit = self.len * self.bits as usize;
        self.len += 1;
        self.bytes.resize((self.len * self.bits as usize).div_ceil(8), 0);
        let shifted = u32::from(code) << (bit % 8);
        self.bytes[bit / 8..].iter_mut().zip(shifted.to_le_bytes()).for_each(|(byte, part)| *byte |= part);
    }

    /// `len` codes over bytes that exist already.
    ///
    /// # Errors
    /// [`Error::Parameter`] for a number of bits other than 1 to 16, [`Error::Length`] when the bytes are not as many as the
    /// codes take, [`Error::Code`] when unused bits of the last byte are set.
    pub fn from_bytes(bits: u32, len: usize, bytes: Vec<u8>) -> Result<Self> {
        check_bits(bits)?;
        let needed = (len as u128 * u128::from(bits)).div_ceil(8);
        if bytes.len() as u128 != needed {
            return Err(Error::length(
                format!("bytes of {len} codes of {bits} bits"),
                usize::try_from(needed).unwrap_or(usize::MAX),
                bytes.len(),
            ));
        }
        let used = (len as u128 * u128::from(bits) % 8) as u32;
        match bytes.last() {
            Some(&last) if used > 0 && last >> used != 0 => {
                Err(Error::Code { index: len, value: i32::from(last >> used), qmin: 0, qmax: 0 })
            }
            _ => Ok(PackedCodes { bytes, bits, len }),
        }
    }

    /// Bits of a code.
    pub fn bits(&self) -> u32 {
        self.bits
    }

    /// Number of codes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The code of that index.
    pub fn get(&self, index: usize) -> Option<u32> {
        if index >= self.len {
            return None;
        }
        let bit = index as u128 * u128::from(self.bits);
        let (byte, shift) = ((bit / 8) as usize, (bit % 8) as u32);
        // At most 7 bits before the code and 16 in it: three bytes.
        let three = (0..3).map(|i| u32::from(self.bytes.get(byte + i).copied().unwrap_or(0)) << (8 * i)).sum::<u32>();
        Some(three >> shift & ((1 << self.bits) - 1))
    }

    /// The codes from `first` on, as many as `output` takes.
    ///
    /// # Panics
    /// When there are fewer.
    pub(crate) fn read(&self, first: usize, output: &mut [u16]) {
        assert!(first + output.len() <= self.len, "codes {first}..{} of {}", first + output.len(), self.len);
        let bits = self.bits as usize;
        // From whole bytes on, eight codes of at most 8 bits lie in one integer.
        let (before, rest) = output.split_at_mut(if bits <= 8 { (8 - first % 8) % 8 } else { output.len() }.min(output.len()));
        before.iter_mut().zip(self.iter_from(first)).for_each(|(output, code)| *output = code as u16);
        let mut at = (first + before.len()) / 8 * bits;
        let mut eights = rest.chunks_exact_mut(8);
        let mask = ((1u32 << bits) - 1) as u64;
        for eight in &mut eights {
            let mut bytes = [0; 8];
            bytes[..bits].copy_from_slice(&self.bytes[at..at + bits]);
            let word = u64::from_le_bytes(bytes);
            eight.iter_mut().enumerate().for_each(|(i, code)| *code = (word >> (i * bits) & mask) as u16);
            at += bits;
        }
        let last = eights.into_remainder();
        let from = at * 8 / bits;
        last.iter_mut().zip(self.iter_from(from)).for_each(|(output, code)| *output = code as u16);
    }

    /// All codes, in order.
    pub fn iter(&self) -> impl Iterator<Item = u32> {
        self.iter_from(0)
    }

    /// The codes from `first` on, in order.
    pub fn iter_from(&self, first: usize) -> impl Iterator<Item = u32> {
        let bit = first.min(self.len) as u128 * u128::from(self.bits);
        let mut bytes = self.bytes[(bit / 8) as usize..].iter();
        let before = (bit % 8) as u32;
        let (mut pending, mut filled) = (0u32, 0);
        if before > 0 {
            (pending, filled) = (bytes.next().map_or(0, |&byte| u32::from(byte)) >> before, 8 - before);
        }
        (first..self.len).map(move |_| {
            while filled < self.bits {
                pending |= bytes.next().map_or(0, |&byte| u32::from(byte)) << filled;
                filled += 8;
            }
            let code = pending & ((1 << self.bits) - 1);
            (pending, filled) = (pending >> self.bits, filled - self.bits);
            code
        })
    }
}

fn check_bits(bits: u32) -> Result<()> {
    match bits {
        1..=16 => Ok(()),
        _ => Err(Error::parameter("bits of a code", bits, "must be 1 to 16")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::num::{QuantElem, U2, U4};

    #[test]
    fn every_code_of_every_width_comes_back() {
        for bits in 1..=16 {
            let codes: Vec<u32> = (0..1 << bits).chain((0..1 << bits).rev()).chain([1]).collect();
            let packed = PackedCodes::new(bits, codes.iter().copied()).unwrap();
            assert_eq!(packed.as_bytes().len(), (codes.len() * bits as usize).div_ceil(8));
            for first in [0, 1, 3, codes.len() - 1, codes.len(), codes.len() + 1] {
                assert!(packed.iter_from(first).eq(codes.iter().copied().skip(first)));
                for count in [0, 1, 7, 8, 9, 30] {
                    let mut read = vec![0; count.min(codes.len().saturating_sub(first))];
                    packed.read(first.min(codes.len()), &mut read);
                    assert!(read.iter().map(|&code| u32::from(code)).eq(codes.iter().copied().skip(first).take(read.len())));
                }
            }
            let short: Vec<u16> = codes.iter().map(|&code| code as u16).collect();
            assert_eq!(PackedCodes::of(bits, &short), packed);
            let mut pushed = PackedCodes::with_room(bits, short.len());
            short.iter().for_each(|&code| pushed.push(code));
            assert_eq!(pushed, packed);
            assert_eq!(pushed.bytes.capacity(), packed.bytes.len());
            assert!((0..codes.len()).all(|i| packed.get(i) == Some(codes[i])) && packed.get(codes.len()).is_none());
            assert_eq!(PackedCodes::from_bytes(bits, codes.len(), packed.as_bytes().to_vec()).unwrap(), packed);
            assert!(PackedCodes::new(bits, [1 << bits]).is_err());
            assert!(PackedCodes::from_bytes(bits, codes.len() + 8, packed.as_bytes().to_vec()).is_err());
        }
        assert!(PackedCodes::new(0, []).is_err() && PackedCodes::new(17, []).is_err());
        assert!(PackedCodes::from_bytes(3, 1, vec![8]).is_err());
    }

    #[test]
    fn as_the_types_of_two_and_four_bits() {
        let codes = [3, 0, 2, 1, 1];
        let (two, four) = (PackedCodes::new(2, codes).unwrap(), PackedCodes::new(4, codes).unwrap());
        for (i, code) in codes.into_iter().enumerate() {
            assert_eq!(U2::get(two.as_bytes(), i) as u32, code);
            assert_eq!(U4::get(four.as_bytes(), i) as u32, code);
        }
    }
}
