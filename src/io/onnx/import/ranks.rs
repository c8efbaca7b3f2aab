//! How many axes a value has.

use super::call::Call;
use crate::nn::{Layer, Operator};

/// Number of axes of what these layers write, where it is known.
pub(super) fn rank_after(chain: &[Layer], call: &Call<'_>) -> Option<usize> {
    let first = call.rank(0);
    match chain {
        [Layer::Conv2d(_)] => Some(4),
        [_, Layer::Conv2d(_), _] => Some(3),
        [Layer::BatchNorm2d(_) | Layer::Relu | Layer::Relu6 | Layer::MaxPool2d(_) | Layer::AvgPool2d(_) | Layer::GlobalAvgPool2d(_)] => {
            first
        }
        [Layer::Operator(operator)] => match operator {
            _ if KEEPS_RANK.contains(&operator.name()) => first,
            // Shapes broadcast.
            Operator::Binary(_) | Operator::Variadic(_) | Operator::Where(_) | Operator::Pow(_) => {
                (0..call.arguments.len()).try_fold(0, |most, i| Some(most.max(call.rank(i)?)))
            }
            Operator::Flatten(_) => Some(2),
            Operator::Reshape(_) => call.value(1).filter(|shape| shape.shape().rank() == 1).map(|shape| shape.shape().elements()),
            _ => None,
        },
        _ => None,
    }
}

/// Operators whose output has as many axes as their first input.
const KEEPS_RANK: &[&str] = &[
    "Clip",
    "LeakyRelu",
    "Sigmoid",
    "HardSigmoid",
    "HardSwish",
    "Tanh",
    "Elu",
    "Gelu",
    "Mish",
    "MaxPool",
    "AveragePool",
    "GlobalAveragePool",
    "Dropout",
    "Identity",
    "Pad",
    "Concat",
    "Transpose",
    "BatchNormalization",
    "Resize",
    "Cast",
];
