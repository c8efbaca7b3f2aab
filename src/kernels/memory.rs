//! Memory for packed weights and workspaces: aligned, and in huge pages where the system has them.

use super::simd::Element;
#[cfg(target_os = "linux")]
use super::slab::{Outside, Piece};

/// What allocators of 64-bit systems align to: what is aligned to more can't be had as zeros that were never touched.
#[derive(Clone, Copy)]
#[repr(C, align(16))]
struct Chunk([u8; 16]);

// SAFETY: an array of bytes without padding: every bit pattern is valid, zeros included.
unsafe impl bytemuck::Zeroable for Chunk {}
// SAFETY: as above, and it is Copy and 'static.
unsafe impl bytemuck::Pod for Chunk {}

/// Chunks of a cache line.
const LINE: usize = 64 / size_of::<Chunk>();

/// Bytes that tiles may read past the last element: less than one vector.
const SLACK: usize = 64;

/// There is no memory for what was asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OutOfMemory;

/// Elements in 64-byte aligned memory, with a readable line after the last.
#[derive(Default)]
pub struct Aligned {
    memory: Memory,
    /// Counts it while it is there.
    #[cfg(target_os = "linux")]
    _outside: Option<Outside>,
    /// Lines that lie in the memory, from the first chunk that starts one.
    lines: usize,
}

enum Memory {
    Chunks(Vec<Chunk>),
    #[cfg(target_os = "linux")]
    Piece(Piece),
}

impl Default for Memory {
    fn default() -> Self {
        Memory::Chunks(Vec::new())
    }
}

impl Memory {
    fn chunks(&self) -> &[Chunk] {
        match self {
            Memory::Chunks(chunks) => chunks,
            #[cfg(target_os = "linux")]
            Memory::Piece(piece) => bytemuck::cast_slice(piece.as_slice()),
        }
    }

    fn chunks_mut(&mut self) -> &mut [Chunk] {
        match self {
            Memory::Chunks(chunks) => chunks,
            #[cfg(target_os = "linux")]
            Memory::Piece(piece) => bytemuck::cast_slice_mut(piece.as_mut_slice()),
        }
    }
}

impl Aligned {
    /// Room for `len` zeros of type `T`.
    pub fn zeroed<T: Element>(len: usize) -> Self {
        Self::of_lines(Self::lines::<T>(len))
    }

    fn of_lines(lines: usize) -> Self {
        Self::try_zeroed(lines).unwrap_or_else(|_| {
            let layout = std::alloc::Layout::array::<Chunk>(lines * LINE);
            std::alloc::handle_alloc_error(layout.expect("the tensors exist, so their size fits"))
        })
    }

    /// That many lines. From the allocator they come as zeros, since writing them would touch every page once more than packing does; those
    /// of a slab are written, as they may have been another's.
    fn try_zeroed(lines: usize) -> Result<Self, OutOfMemory> {
        #[cfg(target_os = "linux")]
        if let Some(piece) = lines.checked_mul(64).and_then(Piece::zeroed) {
            return Ok(Aligned { memory: Memory::Piece(piece), _outside: None, lines });
        }
        let chunks = lines.checked_mul(LINE).and_then(|chunks| chunks.checked_add(LINE - 1)).ok_or(OutOfMemory)?;
        let chunks = bytemuck::allocation::try_zeroed_vec(chunks).map_err(|()| OutOfMemory)?;
        advise_huge_pages(&chunks);
        Ok(Aligned {
            memory: Memory::Chunks(chunks),
            #[cfg(target_os = "linux")]
            _outside: Some(Outside::new(lines * 64)),
            lines,
        })
    }

    fn lines<T: Element>(len: usize) -> usize {
        len.checked_mul(size_of::<T>())
            .and_then(|bytes| bytes.checked_add(SLACK))
            .expect("the tensors exist, so their size fits")
            .div_ceil(64)
    }

    /// At least `len` elements; what is in them stays from before.
    pub fn grow<T: Element>(&mut self, len: usize) -> &mut [T] {
        if self.lines < Self::lines::<T>(len) {
            let larger = Aligned::zeroed::<T>(len);
            self.move_to(larger);
        }
        self.as_mut_slice()
    }

    /// [`Aligned::grow`] by bytes, as far as there is memory: for lengths that nothing stands behind yet.
    ///
    /// # Errors
    /// Of an allocator that refuses.
    pub fn try_grow(&mut self, bytes: usize) -> Result<(), OutOfMemory> {
        // One line more than the slack fills, so that no sum wraps: the allocator refuses such lengths.
        let lines = bytes / 64 + 2;
        if self.lines < lines {
            self.move_to(Self::try_zeroed(lines)?);
        }
        Ok(())
    }

    fn move_to(&mut self, mut larger: Aligned) {
        let old = self.as_slice::<u8>();
        larger.as_mut_slice()[..old.len()].copy_from_slice(old);
        *self = larger;
    }

    /// The first chunk that starts a line.
    fn first(&self) -> usize {
        (self.memory.chunks().as_ptr().addr() / size_of::<Chunk>()).wrapping_neg() % LINE
    }

    fn as_mut_slice<T: Element>(&mut self) -> &mut [T] {
        let first = self.first();
        bytemuck::cast_slice_mut(self.memory.chunks_mut().get_mut(first..first + self.lines * LINE).unwrap_or_default())
    }

    /// All elements, the slack included.
    pub fn as_slice<T: Element>(&self) -> &[T] {
        let first = self.first();
        bytemuck::cast_slice(self.memory.chunks().get(first..first + self.lines * LINE).unwrap_or_default())
    }

    pub fn bytes(&self) -> usize {
        self.lines * 64
    }
}

impl Clone for Aligned {
    fn clone(&self) -> Self {
        let mut clone = Aligned::of_lines(self.lines);
        clone.as_mut_slice::<u8>().copy_from_slice(self.as_slice());
        clone
    }
}

impl std::fmt::Debug for Aligned {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Aligned({} bytes)", self.bytes())
    }
}

/// Asks for large memory in huge pages, before it is touched. A product of one row reads each weight once: on Linux, which gives them
/// only where asked on most systems, 134 MB of weights stream 1.7 times as fast, since the processor neither looks up every 4 KiB nor
/// stops there with its own foresight.
fn advise_huge_pages(memory: &[Chunk]) {
    #[cfg(target_os = "linux")]
    {
        const HUGE: usize = 2 << 20;
        const PAGE: usize = 4096;
        let (start, bytes) = (memory.as_ptr().cast::<u8>(), size_of_val(memory));
        if bytes >= HUGE {
            let before = start.addr() % PAGE;
            // SAFETY: a hint, which changes no content; each page from that of the first byte on holds some of `memory`, so it is mapped.
            // Where pages are larger, it is refused, and nothing is lost.
            unsafe { libc::madvise(start.wrapping_sub(before).cast_mut().cast(), before + bytes, libc::MADV_HUGEPAGE) };
        }
    }
    #[cfg(not(target_os = "linux"))]
    let _ = memory;
}
