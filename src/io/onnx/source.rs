//! A file as the decoder wants its bytes: large fields go from the file into memory of their own, and the file is never in
//! memory as a whole, so that tensors can be taken over one by one, each giving its bytes back.

use std::collections::HashMap;
use std::fs::File;
use std::io::{Error, ErrorKind, Read, Seek, SeekFrom};
use std::sync::Arc;

use bytes::{Buf, Bytes};

/// The unread part of a file, behind a window. A [`Buf`] can't fail, so what fails ends the bytes and is kept in `failure`.
pub struct Source {
    file: File,
    window: Vec<u8>,
    start: usize,
    // Bytes of the file behind the window.
    left: usize,
    pub failure: Option<Error>,
    pub blocks: Blocks,
}

const WINDOW: usize = 1 << 16;

/// Fields of at least a window, in memory that a tensor of `f32` can take over as it is: touching memory for the first time
/// costs as much as filling it.
#[derive(Debug, Default)]
pub struct Blocks(HashMap<usize, Arc<Vec<f32>>>);

impl Blocks {
    /// The numbers that these bytes are, if they are a whole field and numbers of this machine.
    pub fn take(&mut self, bytes: &Bytes) -> Option<Arc<Vec<f32>>> {
        let whole = |block: &Arc<Vec<f32>>| size_of_val(block.as_slice()) == bytes.len() && cfg!(target_endian = "little");
        self.0.remove(&bytes.as_ptr().addr()).filter(whole)
    }
}

/// The first `length` bytes of a block.
struct Block {
    data: Arc<Vec<f32>>,
    length: usize,
}

impl AsRef<[u8]> for Block {
    fn as_ref(&self) -> &[u8] {
        &bytemuck::cast_slice(&self.data)[..self.length]
    }
}

impl Source {
    /// The first `length` bytes of a file, from where it stands.
    pub fn new(file: File, length: usize) -> Self {
        let mut source = Source { file, window: Vec::new(), start: 0, left: length, failure: None, blocks: Blocks::default() };
        source.refill();
        source
    }

    fn fail(&mut self, error: Error) {
        self.window.clear();
        (self.start, self.left) = (0, 0);
        self.failure = Some(error);
    }

    /// Makes a window of what follows the last one, which has been read.
    fn refill(&mut self) {
        self.window.clear();
        self.start = 0;
        let length = self.left.min(WINDOW);
        let mut window = std::mem::take(&mut self.window);
        match self.append(&mut window, length) {
            Ok(()) => self.window = window,
            Err(error) => self.fail(error),
        }
    }

    fn append(&mut self, to: &mut Vec<u8>, length: usize) -> Result<(), Error> {
        to.try_reserve_exact(length)?;
        if (&mut self.file).take(length as u64).read_to_end(to)? < length {
            return Err(ErrorKind::UnexpectedEof.into());
        }
        self.left -= length;
        Ok(())
    }

    /// The next `length` bytes, of which the window holds the first ones.
    fn block(&mut self, length: usize, held: usize) -> Result<Bytes, Error> {
        if length - held > self.left {
            return Err(ErrorKind::UnexpectedEof.into());
        }
        let zeroed = bytemuck::try_zeroed_vec(length.div_ceil(size_of::<f32>()));
        let mut data: Vec<f32> = zeroed.map_err(|()| Error::from(ErrorKind::OutOfMemory))?;
        let bytes = &mut bytemuck::cast_slice_mut(&mut data)[..length];
        bytes[..held].copy_from_slice(self.chunk());
        self.file.read_exact(&mut bytes[held..])?;
        self.left -= length - held;
        let data = Arc::new(data);
        let bytes = Bytes::from_owner(Block { data: data.clone(), length });
        if length >= WINDOW {
            self.blocks.0.insert(bytes.as_ptr().addr(), data);
        }
        Ok(bytes)
    }
}

impl Buf for Source {
    fn remaining(&self) -> usize {
        self.window.len() - self.start + self.left
    }

    fn chunk(&self) -> &[u8] {
        &self.window[self.start..]
    }

    fn advance(&mut self, count: usize) {
        let held = self.window.len() - self.start;
        if count < held {
            self.start += count;
            return;
        }
        // Beyond the end, which the contract of `Buf` forbids, there is nothing to skip.
        let skipped = (count - held).min(self.left);
        self.left -= skipped;
        match i64::try_from(skipped).map_err(Error::other).and_then(|n| self.file.seek(SeekFrom::Current(n))) {
            Ok(_) => self.refill(),
            Err(error) => self.fail(error),
        }
    }

    fn copy_to_bytes(&mut self, length: usize) -> Bytes {
        let held = self.chunk().len();
        if length < held {
            let bytes = Bytes::copy_from_slice(&self.chunk()[..length]);
            self.start += length;
            return bytes;
        }
        match self.block(length, held) {
            Ok(bytes) => {
                self.refill();
                bytes
            }
            Err(error) => {
                self.fail(error);
                Bytes::new()
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_come_as_they_lie_however_they_are_asked_for() {
        let path = std::env::temp_dir().join(format!("lowprec-source-{}", std::process::id()));
        let bytes: Vec<u8> = (0..300_000u32).flat_map(u32::to_le_bytes).collect();
        std::fs::write(&path, &bytes).unwrap();
        let (mut source, mut at) = (Source::new(File::open(&path).unwrap(), bytes.len()), 0);
        for (i, step) in [1, 7, WINDOW - 8, WINDOW, 3, WINDOW * 2 + 5, 0, 100, WINDOW - 100, 300_000].into_iter().enumerate() {
            assert_eq!(source.remaining(), bytes.len() - at);
            assert!(bytes[at..].starts_with(source.chunk()) && !source.chunk().is_empty());
            match i % 2 {
                0 => assert_eq!(source.copy_to_bytes(step), bytes[at..at + step]),
                _ => source.advance(step),
            }
            at += step;
        }
        assert_eq!(source.copy_to_bytes(bytes.len() - at), bytes[at..]);
        assert!(source.chunk().is_empty() && source.remaining() == 0 && source.failure.is_none());

        // Only what was a whole field of numbers can be taken over, once.
        let mut source = Source::new(File::open(&path).unwrap(), bytes.len());
        let (odd, whole) = (source.copy_to_bytes(WINDOW + 1), source.copy_to_bytes(WINDOW * 4));
        assert!(source.blocks.take(&odd).is_none() && source.blocks.take(&whole.slice(4..)).is_none());
        let (taken, expected) = (source.blocks.take(&whole).unwrap(), &bytes[WINDOW + 1..WINDOW * 5 + 1]);
        assert_eq!(bytemuck::cast_slice::<f32, u8>(&taken), expected);
        assert!(source.blocks.take(&whole).is_none());

        // A file that has become shorter.
        let mut source = Source::new(File::open(&path).unwrap(), bytes.len() + 1);
        source.advance(bytes.len() - 1);
        assert_eq!((source.remaining(), source.failure.unwrap().kind()), (0, ErrorKind::UnexpectedEof));
        std::fs::remove_file(&path).unwrap();
    }
}
