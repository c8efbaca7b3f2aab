//! `ndarray`: views in, views and arrays out.
//!
//! ```
//! use lowprec::Tensor;
//! use ndarray::{ArrayD, array};
//! let matrix = array![[1.0f32, 2.0], [3.0, 4.0]];
//! let tensor = Tensor::try_from(matrix.t())?; // in whatever order the view walks
//! assert_eq!((tensor.dims(), tensor.as_slice()), (&[2, 2][..], &[1.0, 3.0, 2.0, 4.0][..]));
//! assert_eq!(tensor.view()?, matrix.t().into_dyn()); // without a copy
//! assert_eq!(ArrayD::try_from(tensor)?, matrix.t().into_dyn());
//! # Ok::<(), lowprec::Error>(())
//! ```

use ndarray::{ArrayD, ArrayView, ArrayViewD, Dimension, IxDyn};

use crate::error::{Error, Result};
use crate::tensor::{Element, Tensor};

impl<T: Element, D: Dimension> TryFrom<ArrayView<'_, T, D>> for Tensor<T> {
    type Error = Error;

    /// A copy of the elements in the view's logical order.
    fn try_from(view: ArrayView<'_, T, D>) -> Result<Self> {
        Tensor::new(view.shape(), view.iter().copied().collect())
    }
}

impl<T: Element> Tensor<T> {
    /// The tensor as a view of `ndarray`, without a copy.
    ///
    /// # Errors
    /// [`Error::ShapeOverflow`] for a shape that `ndarray` refuses: one without elements whose other lengths are too large to address.
    pub fn view(&self) -> Result<ArrayViewD<'_, T>> {
        ArrayViewD::from_shape(IxDyn(self.dims()), self.as_slice()).map_err(|_| refused(self.dims()))
    }
}

impl<T: Element> TryFrom<Tensor<T>> for ArrayD<T> {
    type Error = Error;

    /// The tensor as an array: its own memory where no clone shares it.
    fn try_from(tensor: Tensor<T>) -> Result<Self> {
        let dims = tensor.dims().to_vec();
        ArrayD::from_shape_vec(IxDyn(&dims), tensor.into_vec()).map_err(|_| refused(&dims))
    }
}

fn refused(dims: &[usize]) -> Error {
    Error::ShapeOverflow { shape: dims.to_vec() }
}
