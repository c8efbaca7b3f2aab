//! Formats as text.

use std::fmt;
use std::str::FromStr;

use crate::error::{Error, Result};
use crate::quant::codebook::{Codebook, Table};
use crate::quant::weights::{Fit, FloatFormat, Grouping, Keep, Kept, Learning, Levels, ScaleFormat, WeightFormat};

const FLOATS: [(&str, FloatFormat); 5] = [
    ("fp8e4m3", FloatFormat::E4M3),
    ("fp8e5m2", FloatFormat::E5M2),
    ("fp6e2m3", FloatFormat::E2M3),
    ("fp6e3m2", FloatFormat::E3M2),
    ("fp4", FloatFormat::E2M1),
];
const SCALES: [ScaleFormat; 11] = [
    ScaleFormat::F32,
    ScaleFormat::F16,
    ScaleFormat::Bf16,
    ScaleFormat::E8M0,
    ScaleFormat::E4M3,
    ScaleFormat::Double,
    ScaleFormat::Log(2),
    ScaleFormat::Log(3),
    ScaleFormat::Log(4),
    ScaleFormat::Log(5),
    ScaleFormat::Log(6),
];
/// Those without a number.
const FITS: [(&str, Fit); 6] = [
    ("hqq", Fit::HalfQuadratic),
    ("range", Fit::Range),
    ("ocp", Fit::Ocp),
    ("half", Fit::HalfRange),
    ("signedmax", Fit::SignedMax),
    ("mse", Fit::LeastSquares),
];
const KEEPS: [(&str, Kept); 3] = [("largest", Kept::Largest), ("smallest", Kept::Smallest), ("sensitive", Kept::Sensitive)];

/// What a name stands for where no option says otherwise.
struct Named {
    levels: Levels,
    grouping: Grouping,
    scale: Option<ScaleFormat>,
    fit: Option<Fit>,
}

fn named(name: &str) -> Option<Named> {
    let plain = |levels| Named { levels, grouping: Grouping::Channel, scale: None, fit: None };
    let float = |name: &str| FLOATS.iter().find(|(text, _)| *text == name).map(|&(_, format)| Levels::Float(format));
    if name == "nvfp4" {
        return Some(Named {
            levels: Levels::Float(FloatFormat::E2M1),
            grouping: Grouping::Group(16),
            scale: Some(ScaleFormat::E4M3),
            fit: Some(Fit::Range),
        });
    }
    if let Some(element) = name.strip_prefix("mx") {
        let levels = if element == "int8" { Levels::MxInt8 } else { float(element)? };
        return Some(Named { levels, grouping: Grouping::Group(32), scale: Some(ScaleFormat::E8M0), fit: Some(Fit::Ocp) });
    }
    if let Some(levels) = float(name) {
        return Some(plain(levels));
    }
    if let Some(list) = name.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
        let levels = list.split(',').map(|level| level.trim().parse().ok()).collect::<Option<Vec<f32>>>()?;
        return Some(plain(Levels::Custom(Codebook::new(levels).ok()?)));
    }
    let digits = name.find(|c: char| c.is_ascii_digit())?;
    let bits = name[digits..].parse().ok()?;
    let learned = |rule| Named { grouping: Grouping::Tensor, ..plain(Levels::Learned { rule, bits, zero: false, own: false }) };
    Some(match &name[..digits] {
        "int" => plain(Levels::Int(bits)),
        "uint" => plain(Levels::Uint(bits)),
        "offset" => plain(Levels::Offset(bits)),
        "shift" => plain(Levels::Shifted(bits)),
        "trellis" => plain(Levels::Trellis(bits)),
        "midrise" => plain(Levels::Table(Table::MidRise(bits))),
        "pot" => plain(Levels::Table(Table::PowersOfTwo(bits))),
        "apot" => plain(Levels::Table(Table::Apot(bits))),
        "gauss" => plain(Levels::Table(Table::Gauss(bits))),
        "nf" if bits == 4 => plain(Levels::Table(Table::Nf4)),
        "kmeans" => learned(Learning::KMeans),
        "quantile" => learned(Learning::Quantile),
        _ => return None,
    })
}

/// A format with what the name leaves open filled in.
fn complete(named: Named) -> Result<WeightFormat> {
    let format = WeightFormat::new(named.levels, named.grouping)?;
    let (scale, fit) = (named.scale.unwrap_or(format.scale_format()), named.fit.unwrap_or(format.fit()));
    format.with_scale_and_fit(scale, fit)
}

impl FromStr for WeightFormat {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let refuse = |rule: String| Error::parameter("weight format", text, rule);
        let mut parts = text.split(':');
        let name = parts.next().unwrap_or_default();
        let mut found = named(name).ok_or_else(|| {
            refuse(format!(
                "there is no `{name}`: names are int, uint, offset, shift, trellis, midrise, pot, apot, gauss, kmeans and quantile with a number of bits, nf4, fp4, nvfp4, \
                 fp6e2m3, fp6e3m2, fp8e4m3, fp8e5m2, mxint8, the small floats behind mx, or levels as in [-1,0,1]"
            ))
        })?;
        let mut keep = None;
        for option in parts {
            let size = option.strip_prefix('g').map(str::parse);
            let kept = option.split_once('=').and_then(|(which, number)| {
                let which = KEEPS.iter().find(|(name, _)| *name == which)?.1;
                Some(Keep { which, fraction: number.parse().ok()? })
            });
            match (option, &mut found.levels) {
                ("tensor", _) => found.grouping = Grouping::Tensor,
                ("channel", _) => found.grouping = Grouping::Channel,
                ("zero", Levels::Learned { zero, .. }) => *zero = true,
                ("own", Levels::Learned { own, .. }) => *own = true,
                _ => {
                    if let Some(Ok(size)) = size {
                        found.grouping = Grouping::Group(size);
                    } else if let Some(&scale) = SCALES.iter().find(|scale| scale.name() == option) {
                        found.scale = Some(scale);
                    } else if let Some(&(_, fit)) = FITS.iter().find(|(name, _)| *name == option) {
                        found.fit = Some(fit);
                    } else if let Some(Ok(percent)) = option.strip_prefix('p').map(str::parse) {
                        found.fit = Some(Fit::Percentile { percent });
                    } else if kept.is_some() {
                        keep = kept;
                    } else {
                        return Err(refuse(format!(
                            "`{name}` has no option `{option}`: options are tensor, channel, g<size>, f32, f16, bf16, e8m0, e4m3, double, log2 to log6, range, p<percent>, ocp, \
                             half, signedmax, hqq, mse, largest=, smallest= and sensitive= with a fraction, and of learned levels zero and own"
                        )));
                    }
                }
            }
        }
        complete(found)?.with_keep(keep)
    }
}

impl fmt::Display for Levels {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Levels::Int(bits) => write!(f, "int{bits}"),
            Levels::Uint(bits) => write!(f, "uint{bits}"),
            Levels::Offset(bits) => write!(f, "offset{bits}"),
            Levels::Shifted(bits) => write!(f, "shift{bits}"),
            Levels::Trellis(bits) => write!(f, "trellis{bits}"),
            Levels::Float(format) => f.write_str(FLOATS.iter().find(|(_, other)| other == format).map_or("fp", |(name, _)| name)),
            Levels::MxInt8 => f.write_str("mxint8"),
            Levels::Table(table) => table.fmt(f),
            Levels::Custom(book) => {
                f.write_str("[")?;
                for (i, level) in book.levels().iter().enumerate() {
                    write!(f, "{}{level}", if i > 0 { "," } else { "" })?;
                }
                f.write_str("]")
            }
            Levels::Learned { rule, bits, .. } => {
                write!(f, "{}{bits}", if *rule == Learning::KMeans { "kmeans" } else { "quantile" })
            }
        }
    }
}

impl fmt::Display for WeightFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let plain = self.levels().to_string();
        let standard = match self.levels() {
            Levels::Float(FloatFormat::E2M1) if self.scale_format() == ScaleFormat::E4M3 => Some("nvfp4".into()),
            Levels::Float(_) if self.fit() == Fit::Ocp => Some(format!("mx{plain}")),
            _ => None,
        };
        let name = standard.unwrap_or(plain);
        f.write_str(&name)?;
        // Said is what differs from what the name alone, and then the grouping, would mean.
        let Some(mut base) = named(&name) else { return Ok(()) };
        if self.grouping() != base.grouping {
            write!(f, ":{}", self.grouping())?;
        }
        base.grouping = self.grouping();
        if let Levels::Learned { zero, own, .. } = self.levels() {
            f.write_str(if *zero { ":zero" } else { "" })?;
            f.write_str(if *own { ":own" } else { "" })?;
        }
        let (scale, fit) = complete(base).map_or((None, None), |base| (Some(base.scale_format()), Some(base.fit())));
        if scale != Some(self.scale_format()) {
            write!(f, ":{}", self.scale_format())?;
        }
        if fit != Some(self.fit()) {
            match self.fit() {
                Fit::Percentile { percent } => write!(f, ":p{percent}")?,
                fit => write!(f, ":{}", FITS.iter().find(|(_, other)| *other == fit).map_or("", |(name, _)| name))?,
            }
        }
        if let Some(keep) = self.keep() {
            let name = KEEPS.iter().find(|(_, which)| *which == keep.which).map_or("", |(name, _)| name);
            write!(f, ":{name}={}", keep.fraction)?;
        }
        Ok(())
    }
}
