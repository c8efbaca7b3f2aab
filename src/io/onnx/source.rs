//! A file as the decoder wants its bytes: large fields go from the file into memory of their own, and the file is never in
//! memory as a whole, so that tensors can be taken over one by one, each giving its bytes back.

use std::fs::File;
use std::io::{Error, ErrorKind, Read, Seek, SeekFrom};

use bytes::{Buf, Bytes};

/// The unread part of a file, behind a window. A [`Buf`] can't fail, so what fails ends the bytes and is kept in `failure`.
pub struct Source {
    file: File,
    window: Vec<u8>,
    start: usize,
    // Bytes of the file behind the window.
    left: usize,
    pub failure: Option<Error>,
}

const WINDOW: usize = 1 << 16;

impl Source {
    /// The first `length` bytes of a file, from where it stands.
    pub fn new(file: File, length: usize) -> Self {
        let mut source = Source { file, window: Vec::new(), start: 0, left: length, failure: None };
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
        let mut bytes = Vec::new();
        let beyond = (length - held).min(self.left);
        let read = bytes.try_reserve_exact(length).map_err(Error::from).and_then(|()| {
            bytes.extend_from_slice(self.chunk());
            self.append(&mut bytes, beyond)
        });
        match read {
            Ok(()) => self.refill(),
            Err(error) => self.fail(error),
        }
        bytes.into()
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

        // A file that has become shorter.
        let mut source = Source::new(File::open(&path).unwrap(), bytes.len() + 1);
        source.advance(bytes.len() - 1);
        assert_eq!((source.remaining(), source.failure.unwrap().kind()), (0, ErrorKind::UnexpectedEof));
        std::fs::remove_file(&path).unwrap();
    }
}
