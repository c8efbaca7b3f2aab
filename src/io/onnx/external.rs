//! Data of tensors in files of their own.

use std::collections::HashMap;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Component, Path, PathBuf};

use crate::error::{Error, Result};
use crate::io::onnx::format_error;
use crate::io::onnx::schema::StringStringEntryProto;
use crate::tensor::{DType, Shape};

/// Where the tensors are whose data lie in files of their own: beside the model, or nowhere for a model that came as bytes.
#[derive(Debug, Default)]
pub struct External {
    directory: Option<PathBuf>,
    // The directories, links resolved, that files may lie in or below.
    roots: Vec<PathBuf>,
    // How many bytes may yet be read from each file.
    allowed: HashMap<PathBuf, u64>,
}

/// How often a file's data may be read in all: several tensors may share them, but not so many that memory runs out.
const SHARED: u64 = 4;

impl External {
    /// Data beside the model at `path`.
    pub fn beside(path: &Path) -> Self {
        let directory = path.parent().map_or_else(PathBuf::new, Path::to_owned);
        let directory = if directory.as_os_str().is_empty() { PathBuf::from(".") } else { directory };
        // A cache may hold links to a model and its data that all lie in one place.
        let real = path.canonicalize().ok().and_then(|path| path.parent().map(Path::to_owned));
        External {
            roots: directory.canonicalize().ok().into_iter().chain(real).collect(),
            directory: Some(directory),
            allowed: HashMap::new(),
        }
    }

    /// The bytes of a tensor of which these entries say where they lie; `what` names it in errors.
    ///
    /// # Errors
    /// [`Error::Format`] for entries that say nothing, or more than the file holds, or a place that is not below the model's,
    /// [`Error::File`] when it can't be read, [`Error::Unsupported`] for a model that came as bytes.
    pub fn read(&mut self, dtype: DType, shape: &Shape, entries: &[StringStringEntryProto], what: &str) -> Result<Vec<u8>> {
        let entry = |key: &str| entries.iter().find(|e| e.key.as_deref() == Some(key)).and_then(|e| e.value.as_deref());
        let number = |key: &str| {
            let parse =
                |text: &str| text.parse::<u64>().map_err(|_| format_error(what, format!("{key} of its data is `{text}`, no number")));
            entry(key).map(parse).transpose()
        };
        let location = entry("location").ok_or_else(|| format_error(what, "its data lie in another file, and nothing says in which"))?;
        let (offset, length) = (number("offset")?.unwrap_or(0), number("length")?);
        let bytes = (shape.elements() as u64).checked_mul(dtype.bits() as u64).map(|bits| bits.div_ceil(8));
        let needed = bytes.ok_or_else(|| format_error(what, Error::ShapeOverflow { shape: shape.dims().to_vec() }))?;
        if let Some(length) = length.filter(|&length| length != needed) {
            return Err(format_error(what, format!("its data have {length} bytes, and {dtype} of shape {shape:?} has {needed}")));
        }
        let path = self.find(location, what)?;
        let failed = |source| Error::File { path: path.display().to_string(), source };
        let mut file = File::open(&path).map_err(failed)?;
        let size = file.metadata().map_err(failed)?.len();
        if offset.checked_add(needed).is_none_or(|end| end > size) {
            return Err(format_error(what, format!("its data are {needed} bytes at {offset} of `{location}`, which has {size}")));
        }
        let allowed = self.allowed.entry(path.clone()).or_insert(size.saturating_mul(SHARED));
        *allowed = allowed.checked_sub(needed).ok_or_else(|| {
            format_error(what, format!("it and other tensors take more than {SHARED} times the bytes that `{location}` has"))
        })?;
        let mut bytes = Vec::new();
        let memory = |_| Error::ShapeOverflow { shape: shape.dims().to_vec() };
        bytes.try_reserve_exact(usize::try_from(needed).unwrap_or(usize::MAX)).map_err(memory)?;
        file.seek(SeekFrom::Start(offset)).map_err(failed)?;
        file.take(needed).read_to_end(&mut bytes).map_err(failed)?;
        Ok(bytes)
    }

    /// The path of a file that may be read, links resolved.
    fn find(&self, location: &str, what: &str) -> Result<PathBuf> {
        let Some(directory) = &self.directory else {
            return Err(Error::Unsupported {
                what: format!("{what}, whose data lie in the file `{location}`, in a model read from bytes"),
                way_out: "read the model from its file".into(),
            });
        };
        let relative = Path::new(location);
        let inside = relative.components().all(|c| matches!(c, Component::Normal(_) | Component::CurDir));
        let path = directory.join(relative);
        let failed = |source| Error::File { path: path.display().to_string(), source };
        let outside = || format_error(what, format!("its data lie in `{location}`, which is not below the directory of the model"));
        if !inside || location.is_empty() {
            return Err(outside());
        }
        let real = path.canonicalize().map_err(failed)?;
        if !self.roots.iter().any(|root| real.starts_with(root)) {
            return Err(outside());
        }
        // Opening what is no file may wait for ever.
        match std::fs::metadata(&real).map_err(failed)?.is_file() {
            true => Ok(real),
            false => Err(format_error(what, format!("its data lie in `{location}`, which is no file"))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::onnx::schema::{EXTERNAL, TensorProto};
    use crate::io::onnx::tensor::{Places, value};

    fn external(entries: &[(&str, &str)]) -> TensorProto {
        let entry = |&(key, value): &(&str, &str)| StringStringEntryProto { key: Some(key.into()), value: Some(value.into()) };
        TensorProto {
            data_location: Some(EXTERNAL),
            external_data: entries.iter().map(entry).collect(),
            data_type: Some(6),
            dims: vec![2],
            ..Default::default()
        }
    }

    #[test]
    fn external_data_lie_below_the_model() {
        let root = std::env::temp_dir().join(format!("lowprec-external-{}", std::process::id()));
        let directory = root.join("model");
        std::fs::create_dir_all(directory.join("weights")).unwrap();
        std::fs::write(root.join("secret"), [0; 8]).unwrap();
        std::fs::write(directory.join("weights/data"), (0..16).collect::<Vec<u8>>()).unwrap();
        #[cfg(unix)]
        std::os::unix::fs::symlink("../secret", directory.join("link")).unwrap();
        let beside = || Places { external: External::beside(&directory.join("model.onnx")), ..Default::default() };
        let read = |entries: &[(&str, &str)]| value(external(entries), "`t`", &mut beside());

        let whole = read(&[("location", "weights/data"), ("offset", "4"), ("length", "8"), ("checksum", "?")]).unwrap();
        assert_eq!(whole.bytes(), [4, 5, 6, 7, 8, 9, 10, 11]);
        assert_eq!(read(&[("location", "./weights/data")]).unwrap().bytes()[..2], [0, 1]);
        let absolute = root.join("secret");
        let mut cases = vec![
            vec![("location", "../secret")],
            vec![("location", "weights/../../secret")],
            vec![("location", absolute.to_str().unwrap())],
            vec![("location", "")],
            vec![("location", "weights")],
            vec![("offset", "0")],
            vec![("location", "weights/data"), ("offset", "9")],
            vec![("location", "weights/data"), ("offset", "18446744073709551615")],
            vec![("location", "weights/data"), ("offset", "-1")],
            vec![("location", "weights/data"), ("length", "16")],
            vec![("location", "weights/data"), ("length", "x")],
        ];
        if cfg!(unix) {
            cases.push(vec![("location", "link")]);
        }
        for case in cases {
            assert!(matches!(read(&case), Err(Error::Format { .. })), "{case:?}: {:?}", read(&case));
        }
        assert!(matches!(read(&[("location", "weights/none")]), Err(Error::File { .. })));
        let bytes = value(external(&[("location", "weights/data")]), "`t`", &mut Places::default());
        assert!(matches!(bytes, Err(Error::Unsupported { .. })));

        // Eight of sixteen bytes, eight times; then memory counts more than sharing.
        let mut shared = beside();
        let again = |shared: &mut Places, place| value(external(&[("location", place)]), "`t`", shared);
        (0..8).for_each(|_| drop(again(&mut shared, "weights/data").unwrap()));
        assert!(matches!(again(&mut shared, "./weights/data"), Err(Error::Format { .. })));
        std::fs::remove_dir_all(&root).unwrap();
    }
}
