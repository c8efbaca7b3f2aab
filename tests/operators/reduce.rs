//! Reductions over every set of axes against walking over indices in f64, positions of extremes, running totals.

use crate::nodes::{both, both_close, close, filled, node, noise, of, value};
use lowprec::nn::operator::{Arg, Cumulative, Reduce, Reduction};
use lowprec::num::{bf16, f16};
use lowprec::tensor::Element;
use lowprec::{DType, Error, Value};

const REDUCTIONS: [Reduction; 10] = [
    Reduction::Sum,
    Reduction::Mean,
    Reduction::Max,
    Reduction::Min,
    Reduction::Prod,
    Reduction::L1,
    Reduction::L2,
    Reduction::LogSum,
    Reduction::LogSumExp,
    Reduction::SumSquare,
];

fn reduced(reduction: Reduction, x: &[f64]) -> f64 {
    let sum = |f: &dyn Fn(f64) -> f64| x.iter().map(|&x| f(x)).sum::<f64>();
    match reduction {
        Reduction::Sum => sum(&|x| x),
        Reduction::Mean => sum(&|x| x) / x.len() as f64,
        Reduction::Max => x.iter().fold(f64::NEG_INFINITY, |a, &b| a.max(b)),
        Reduction::Min => x.iter().fold(f64::INFINITY, |a, &b| a.min(b)),
        Reduction::Prod => x.iter().product(),
        Reduction::L1 => sum(&f64::abs),
        Reduction::L2 => sum(&|x| x * x).sqrt(),
        Reduction::LogSum => sum(&|x| x).ln(),
        Reduction::LogSumExp => sum(&f64::exp).ln(),
        _ => sum(&|x| x * x),
    }
}

/// The elements that fall together, for each element of the result, row-major.
fn classes(x: &[f64], dims: &[usize], folds: &[bool]) -> Vec<Vec<f64>> {
    let kept: usize = dims.iter().zip(folds).filter(|(_, folds)| !**folds).map(|(length, _)| length).product();
    let mut classes = vec![Vec::new(); kept];
    for (i, &x) in x.iter().enumerate() {
        let (mut at, mut class, mut stride) = (i, 0, 1);
        for axis in (0..dims.len()).rev() {
            if !folds[axis] {
                class += at % dims[axis] * stride;
                stride *= dims[axis];
            }
            at /= dims[axis];
        }
        classes[class].push(x);
    }
    classes
}

#[test]
fn over_every_set_of_axes() {
    for dims in [&[2, 3, 4, 5][..], &[3, 5, 7, 70], &[6], &[2, 1, 3], &[0, 3], &[3, 0], &[2, 3, 2, 3, 2], &[]] {
        let x = filled(dims, |i| 0.4 + ((i * 7919) % 101) as f32 / 64.0);
        let wide: Vec<f64> = of::<f32>(&x).iter().map(|&x| x.into()).collect();
        for set in 0..1usize << dims.len() {
            let axes: Vec<i64> =
                (0..dims.len()).filter(|i| set >> i & 1 == 1).map(|i| i as i64 - (i as i64 % 2) * dims.len() as i64).collect();
            let folds: Vec<bool> = (0..dims.len()).map(|i| set >> i & 1 == 1 || set == 0).collect();
            let classes = classes(&wide, dims, &folds);
            for reduction in REDUCTIONS {
                // A long product leaves f32 behind.
                if reduction == Reduction::Prod && classes.first().is_some_and(|class| class.len() > 100) {
                    continue;
                }
                let expected: Vec<f64> = classes.iter().map(|class| reduced(reduction, class)).collect();
                let kept: Vec<usize> = dims.iter().zip(&folds).map(|(&n, &folds)| if folds { 1 } else { n }).collect();
                let left: Vec<usize> = dims.iter().zip(&folds).filter(|(_, folds)| !**folds).map(|(&n, _)| n).collect();
                let by_input = value(&[axes.len()], axes.clone());
                let reduce = Reduce::new(reduction);
                both_close(reduce.clone().with_axes(axes.clone()), &[&x], &kept, &expected, 1e-5);
                both_close(reduce.clone().with_kept_axes(false), &[&x, &by_input], &left, &expected, 1e-5);
                both_close(reduce, &[&x, &by_input], &kept, &expected, 1e-5);
            }
        }
    }
}

#[test]
fn no_axes_may_mean_none() {
    let x = noise(&[2, 3, 2, 2], 1);
    for (reduction, exact) in [
        (Reduction::Sum, (|x| x) as fn(f64) -> f64),
        (Reduction::L1, f64::abs),
        (Reduction::SumSquare, |x| x * x),
        (Reduction::LogSumExp, |x| x),
    ] {
        let expected: Vec<f64> = of::<f32>(&x).iter().map(|&x| exact(x.into())).collect();
        for keeps in [true, false] {
            let reduce = Reduce::new(reduction).with_empty_as_none(true).with_kept_axes(keeps);
            both_close(reduce.clone(), &[&x], &[2, 3, 2, 2], &expected, 1e-6);
            both_close(reduce, &[&x, &value(&[0], Vec::<i64>::new())], &[2, 3, 2, 2], &expected, 1e-6);
        }
    }
}

#[test]
fn threads_and_batches_do_not_matter() {
    let x = noise(&[64, 40, 61], 5);
    for axes in [&[1][..], &[2], &[1, 2]] {
        let whole = both(Reduce::new(Reduction::Sum).with_axes(axes), &[&x]);
        let part = value(&[1, 40, 61], of::<f32>(&x)[63 * 40 * 61..].to_vec());
        let part = both(Reduce::new(Reduction::Sum).with_axes(axes), &[&part]);
        let (whole, part) = (of::<f32>(&whole), of::<f32>(&part));
        assert_eq!(&whole[whole.len() - part.len()..], part);
    }
    // Many rows: the error does not grow with their number.
    let x = filled(&[100_000, 3], |_| 0.1f32);
    close(of(&both(Reduce::new(Reduction::Sum).with_axes([0]), &[&x])), &[10_000.0 * f64::from(0.1f32) * 10.0; 3], 2e-6);
    // A number goes through 256 sums in its lane, 4 over the lanes and 73 over the pieces, each rounded by half a unit.
    close(of(&both(Reduce::new(Reduction::Sum), &[&x])), &[30_000.0 * f64::from(0.1f32) * 10.0], 333.0 * f64::from(f32::EPSILON) / 2.0);
}

fn whole<T: Element + Copy>(reduction: Reduction, x: &[T]) -> T {
    of::<T>(&both(Reduce::new(reduction).with_kept_axes(false), &[&value(&[x.len()], x.to_vec())]))[0]
}

#[test]
fn other_types() {
    assert_eq!(whole(Reduction::Sum, &[i32::MAX, 2]), i32::MIN + 1);
    assert_eq!(whole(Reduction::Mean, &[-3i64, -4]), -3);
    assert_eq!(whole(Reduction::Prod, &[3u64, 5, 7]), 105);
    assert_eq!(
        (whole(Reduction::L1, &[-3i32, 4]), whole(Reduction::L2, &[-3i32, 4]), whole(Reduction::SumSquare, &[-3i32, 4])),
        (7, 5, 25)
    );
    assert_eq!(whole(Reduction::LogSum, &[8u32, 13]), 3);
    assert_eq!((whole(Reduction::Max, &[-3i8, 4]), whole(Reduction::Min, &[7u8, 4])), (4, 4));
    assert!(whole(Reduction::Max, &[true, false]) && !whole(Reduction::Min, &[true, false]));
    let x: Vec<f32> = (0..200).map(|i| i as f32 / 8.0).collect();
    assert_eq!(whole(Reduction::Sum, &x.iter().map(|&x| f16::from_f32(x)).collect::<Vec<_>>()), f16::from_f32(x.iter().sum()));
    assert_eq!(whole(Reduction::Max, &x.iter().map(|&x| bf16::from_f32(x)).collect::<Vec<_>>()), bf16::from_f32(x[199]));
    assert_eq!(whole(Reduction::Mean, &x.iter().map(|&x| f64::from(x)).collect::<Vec<_>>()), 199.0 / 16.0);
}

#[test]
fn edges() {
    let nan = |reduction| of::<f32>(&both(Reduce::new(reduction), &[&value(&[3], vec![1.0, f32::NAN, 2.0])]))[0].is_nan();
    assert!(nan(Reduction::Max) && nan(Reduction::Min) && nan(Reduction::Sum) && nan(Reduction::LogSumExp));
    let inf = f32::INFINITY;
    assert_eq!((whole(Reduction::LogSumExp, &[-inf, -inf]), whole(Reduction::LogSumExp, &[inf, 0.0])), (-inf, inf));
    assert!((whole(Reduction::LogSumExp, &[1e4f32, 1e4]) - 10_000.693).abs() < 1e-3);
    assert_eq!(
        (whole::<i32>(Reduction::Max, &[]), whole::<u32>(Reduction::Min, &[]), whole::<i64>(Reduction::Prod, &[])),
        (i32::MIN, u32::MAX, 1)
    );
    assert_eq!((whole::<bool>(Reduction::Max, &[]), whole::<bool>(Reduction::Min, &[])), (false, true));
    let mean = node(Reduce::new(Reduction::Mean), &[Some(&value(&[0], Vec::<i32>::new()))]);
    assert!(matches!(mean.unwrap_err().kind(), Error::Empty { .. }));
    let refused = |reduce: Reduce, x: Value| node(reduce, &[Some(&x)]).unwrap_err();
    assert!(matches!(refused(Reduce::new(Reduction::Sum), value(&[1], vec![1u8])).kind(), Error::Type { .. }));
    assert!(matches!(refused(Reduce::new(Reduction::Sum).with_axes([2]), noise(&[2, 2], 0)).kind(), Error::Parameter { what: "axis", .. }));
}

#[test]
fn where_extremes_stand() {
    for dims in [&[2, 3, 4, 5][..], &[7], &[3, 1], &[2, 3, 2, 3, 2]] {
        // Many equals.
        let x = filled(dims, |i| ((i * 7919) % 5) as f32);
        let wide: Vec<f64> = of::<f32>(&x).iter().map(|&x| x.into()).collect();
        for axis in 0..dims.len() {
            let folds: Vec<bool> = (0..dims.len()).map(|i| i == axis).collect();
            let lines = classes(&wide, dims, &folds);
            for (arg, sign) in [(Arg::max(axis as i64), 1.0), (Arg::min(axis as i64 - dims.len() as i64), -1.0)] {
                for last in [false, true] {
                    let expected: Vec<i64> = lines
                        .iter()
                        .map(|line| {
                            let best = line.iter().fold(f64::NEG_INFINITY, |a, x| a.max(sign * x));
                            let is_best = |x: &f64| sign * x == best;
                            (if last { line.iter().rposition(is_best) } else { line.iter().position(is_best) }).unwrap() as i64
                        })
                        .collect();
                    let arg = arg.with_last_of_equals(last);
                    assert_eq!(of::<i64>(&both(arg, &[&x])), expected);
                    let dropped = both(arg.with_kept_axis(false), &[&x]);
                    assert_eq!((of::<i64>(&dropped), dropped.shape().rank()), (&expected[..], dims.len() - 1));
                }
            }
        }
    }
    assert_eq!(of::<i64>(&both(Arg::max(0), &[&value(&[4], vec![1.0, f32::NAN, 3.0, f32::NAN])])), [1]);
    assert_eq!(of::<i64>(&both(Arg::min(0), &[&value(&[3], vec![3u16, 1, 2])])), [1]);
    assert!(matches!(node(Arg::max(0), &[Some(&noise(&[0, 2], 0))]).unwrap_err().kind(), Error::Shape { .. }));
}

#[test]
fn running_totals() {
    let (x, axis) = (value(&[2, 3], vec![1f32, 2.0, 3.0, 4.0, 5.0, 6.0]), |axis: i64| value(&[], vec![axis]));
    let sum = |cumulative: Cumulative, along: i64| of::<f32>(&both(cumulative, &[&x, &axis(along)])).to_vec();
    assert_eq!(sum(Cumulative::sum(), 1), [1.0, 3.0, 6.0, 4.0, 9.0, 15.0]);
    assert_eq!(sum(Cumulative::sum(), -2), [1.0, 2.0, 3.0, 5.0, 7.0, 9.0]);
    assert_eq!(sum(Cumulative::sum().with_exclusive(true), 1), [0.0, 1.0, 3.0, 0.0, 4.0, 9.0]);
    assert_eq!(sum(Cumulative::sum().with_reverse(true), 1), [6.0, 5.0, 3.0, 15.0, 11.0, 6.0]);
    assert_eq!(sum(Cumulative::sum().with_reverse(true).with_exclusive(true), 1), [5.0, 3.0, 0.0, 11.0, 6.0, 0.0]);
    assert_eq!(sum(Cumulative::product(), 1), [1.0, 2.0, 6.0, 4.0, 20.0, 120.0]);
    assert_eq!(sum(Cumulative::product().with_exclusive(true), 0), [1.0, 1.0, 1.0, 1.0, 2.0, 3.0]);
    let whole = both(Cumulative::sum(), &[&value(&[3], vec![i32::MAX, 1, 1]), &value(&[1], vec![0i32])]);
    assert_eq!(of::<i32>(&whole), [i32::MAX, i32::MIN, i32::MIN + 1]);
    assert_eq!(both(Cumulative::sum(), &[&value(&[2, 0], Vec::<f64>::new()), &axis(1)]).dtype(), DType::F64);
    let wrong = node(Cumulative::sum(), &[Some(&x), Some(&axis(2))]);
    assert!(matches!(wrong.unwrap_err().kind(), Error::Parameter { what: "axis", .. }));
}
