//! Which nodes of a float model run in integers, and which values need a grid for it.
//!
//! A convolution or linear layer is an *anchor*: its products are what integers are for. A sum, a product, a concatenation, a
//! mean or a function of one element between two anchors *follows* them, since leaving it in float would cost a conversion on
//! each side; one that no anchor reads from stays in float, where it is more accurate and costs nothing. What only moves
//! elements, or picks some of them, does so with codes as well.

use std::collections::HashMap;

use crate::kernels::Activation;
use crate::nn::operator::{Binary, Operator, Unary, Variadic};
use crate::nn::{Edge, Layer, Model, Node, Wiring};
use crate::tensor::{Shape, Value};

/// What a node does in the integer model.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Role {
    /// Products of codes, and what is fused after them.
    Anchor(Group),
    /// Codes in, codes of its own grid out.
    Follower(Form),
    /// Codes in, the same codes out in other places.
    Mover,
    /// Part of an anchor's output stage.
    Fused,
    /// What it did before.
    Float,
}

/// How a follower is computed.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Form {
    /// The sum of two values.
    Sum,
    /// The product of two values.
    Product,
    /// Several values as one.
    Concat,
    /// Means of windows, or of whole images.
    Mean,
    /// The less, or the greater, of each element of the input of this index and a constant.
    Bound(usize),
    /// A function of each element of the input of this index.
    Function(usize),
}

/// What an anchor's output stage does besides.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Group {
    /// The nodes that are fused, in order.
    pub fused: Vec<usize>,
    /// The value that is added, by the node of this position in `fused`.
    pub residual: Option<(usize, Edge)>,
    /// What comes last.
    pub activation: Activation,
}

impl Group {
    /// The node whose output the anchor writes.
    pub fn last(&self, anchor: usize) -> usize {
        self.fused.last().copied().unwrap_or(anchor)
    }
}

/// What the analysis must know besides the model.
pub(crate) struct Wishes<'a> {
    /// Whether a node may run in integers.
    pub integer: &'a dyn Fn(usize) -> bool,
    /// Whether a value is rounded to a grid where it stands, in a model that says so itself: it then has codes, and no other value
    /// has.
    pub rounded: Option<&'a dyn Fn(Edge) -> bool>,
    /// Shapes by edge, where they are known: a sum of values whose shapes may differ is not fused.
    pub shapes: Option<&'a [Shape]>,
}

impl Wishes<'_> {
    fn rounds(&self, edge: Edge) -> bool {
        self.rounded.is_some_and(|rounded| rounded(edge))
    }
}

#[derive(Debug, PartialEq)]
pub(crate) struct Roles {
    /// By node.
    pub roles: Vec<Role>,
    /// By edge: whether somebody reads its codes.
    pub wanted: Vec<bool>,
    /// By edge: the edge whose grid its codes have, itself unless elements were only moved.
    pub root: Vec<usize>,
}

impl Roles {
    pub fn new(model: &Model, wiring: &Wiring<'_>, wishes: &Wishes<'_>) -> Self {
        let nodes = model.nodes();
        let edges = model.edge_count();
        let mut found = Forward {
            model,
            wiring,
            wishes,
            roles: vec![Role::Float; nodes.len()],
            groups: HashMap::new(),
            able: vec![false; edges],
            open: vec![None; edges],
        };
        model.inputs().iter().for_each(|input| found.able[input.edge().index] = wishes.rounds(input.edge()));
        (0..nodes.len()).for_each(|index| found.node(index));
        let Forward { mut roles, mut groups, .. } = found;

        // Backwards: who reads codes.
        let mut wanted: Vec<bool> = vec![false; edges];
        model
            .inputs()
            .iter()
            .map(|input| input.edge())
            .chain(nodes.iter().flat_map(|node| node.outputs().iter().copied()))
            .for_each(|edge| wanted[edge.index] = wishes.rounds(edge));
        let mut anchor_of: HashMap<usize, usize> = groups.iter().map(|(&anchor, group)| (group.last(anchor), anchor)).collect();
        for index in (0..nodes.len()).rev() {
            let node = &nodes[index];
            if let Some(anchor) = anchor_of.remove(&index) {
                let group = groups.get_mut(&anchor).expect("an anchor has a group");
                // Floats are written where nobody wants codes, and no codes are added to them.
                if let Some((at, residual)) = group.residual {
                    if wanted[node.outputs()[0].index] {
                        wanted[residual.index] = true;
                    } else {
                        group.fused.drain(at..).for_each(|index| roles[index] = Role::Float);
                        *group = Group { fused: std::mem::take(&mut group.fused), ..Group::default() };
                    }
                }
                wanted[nodes[anchor].inputs()[0].expect("checked when the types were inferred").index] = true;
                continue;
            }
            let is_wanted = node.outputs().iter().any(|edge| wanted[edge.index]);
            match &roles[index] {
                Role::Follower(_) | Role::Mover if !is_wanted => roles[index] = Role::Float,
                Role::Follower(Form::Function(at) | Form::Bound(at)) => {
                    node.inputs()[*at].iter().for_each(|edge| wanted[edge.index] = true)
                }
                Role::Follower(_) => node.reads().for_each(|edge| wanted[edge.index] = true),
                Role::Mover => node.reads().take(1).for_each(|edge| wanted[edge.index] = true),
                Role::Anchor(_) | Role::Fused | Role::Float => {}
            }
        }
        for (anchor, group) in groups {
            roles[anchor] = Role::Anchor(group);
        }
        let mut root: Vec<usize> = (0..edges).collect();
        for (node, role) in nodes.iter().zip(&roles) {
            if let (Role::Mover, Some(from)) = (role, node.reads().next()) {
                node.outputs().iter().for_each(|edge| root[edge.index] = root[from.index]);
            }
        }
        Roles { roles, wanted, root }
    }
}

struct Forward<'a> {
    model: &'a Model,
    wiring: &'a Wiring<'a>,
    wishes: &'a Wishes<'a>,
    roles: Vec<Role>,
    groups: HashMap<usize, Group>,
    /// By edge: whether codes can be written there without going through floats.
    able: Vec<bool>,
    /// By edge: the anchor whose output stage writes it and has room for more.
    open: Vec<Option<usize>>,
}

impl Forward<'_> {
    fn node(&mut self, index: usize) {
        let node = &self.model.nodes()[index];
        let allowed = (self.wishes.integer)(index);
        let role = match node.layer() {
            Layer::Conv2d(_) | Layer::Linear(_) if allowed => {
                self.groups.insert(index, Group::default());
                self.open[node.outputs()[0].index] = Some(index);
                Role::Anchor(Group::default())
            }
            _ if allowed && self.fuses(index, node) => Role::Fused,
            _ => match self.form(node).filter(|&form| allowed && self.all_able(node, form)) {
                Some(form) => Role::Follower(form),
                None if allowed && moves(node.layer()) && node.reads().next().is_some_and(|edge| self.able[edge.index]) => Role::Mover,
                None => Role::Float,
            },
        };
        let able = |&edge: &Edge| self.wishes.rounded.map_or(role != Role::Float, |rounded| rounded(edge));
        node.outputs().iter().for_each(|edge| self.able[edge.index] = able(edge));
        self.roles[index] = role;
    }

    /// Takes the node into the output stage of the anchor before it, if it fits there.
    fn fuses(&mut self, index: usize, node: &Node) -> bool {
        let open = |edge: Edge| {
            let anchor = self.open[edge.index].filter(|_| self.wiring.is_private(edge, index) && !self.wishes.rounds(edge));
            anchor.map(|anchor| (anchor, edge))
        };
        if let Some(activation) = clamp(node, self.wiring) {
            let Some((anchor, _)) = node.reads().next().and_then(open) else { return false };
            let group = self.groups.get_mut(&anchor).expect("an anchor has a group");
            group.activation = activation;
            group.fused.push(index);
            return true;
        }
        let &[Some(a), Some(b)] = node.inputs() else { return false };
        if !is_sum(node.layer()) || a == b || self.wishes.shapes.is_none_or(|shapes| shapes[a.index] != shapes[b.index]) {
            return false;
        }
        // Of two anchors the later one adds what the earlier one wrote.
        let fits = |&(anchor, edge): &(usize, Edge)| {
            self.groups[&anchor].residual.is_none() && self.able[if edge == a { b.index } else { a.index }]
        };
        let Some((anchor, edge)) = [open(a), open(b)].into_iter().flatten().filter(fits).max_by_key(|(anchor, _)| *anchor) else {
            return false;
        };
        let group = self.groups.get_mut(&anchor).expect("an anchor has a group");
        group.residual = Some((group.fused.len(), if edge == a { b } else { a }));
        group.fused.push(index);
        self.open[node.outputs()[0].index] = Some(anchor);
        true
    }

    fn all_able(&self, node: &Node, form: Form) -> bool {
        match form {
            Form::Function(at) | Form::Bound(at) => node.inputs()[at].is_some_and(|edge| self.able[edge.index]),
            _ => node.reads().all(|edge| self.able[edge.index]),
        }
    }

    fn form(&self, node: &Node) -> Option<Form> {
        if let Some(at) = function_of(node, self.wiring) {
            return Some(Form::Function(at));
        }
        if let Some(at) = bounded(node, self.wiring) {
            return Some(Form::Bound(at));
        }
        match node.layer() {
            layer if is_sum(layer) => Some(Form::Sum),
            Layer::Operator(Operator::Binary(Binary::Mul)) => Some(Form::Product),
            Layer::Operator(Operator::Concat(_)) => Some(Form::Concat),
            Layer::AvgPool2d(_) | Layer::GlobalAvgPool2d(_) => Some(Form::Mean),
            Layer::Operator(Operator::Pool(pool)) if pool.averages_images().is_some() => Some(Form::Mean),
            Layer::Operator(Operator::GlobalPool(pool)) if pool.is_average() => Some(Form::Mean),
            _ => None,
        }
    }
}

fn is_sum(layer: &Layer) -> bool {
    matches!(layer, Layer::Add | Layer::Operator(Operator::Binary(Binary::Add)))
}

/// The clamp that the node is.
pub(crate) fn clamp(node: &Node, wiring: &Wiring<'_>) -> Option<Activation> {
    match node.layer() {
        Layer::Relu | Layer::Operator(Operator::Unary(Unary::Relu)) => Some(Activation::Relu),
        Layer::Relu6 => Some(Activation::Clamp { lo: 0.0, hi: 6.0 }),
        Layer::Operator(Operator::Clip(clip)) => {
            let (min, max) = clip.bounds();
            let bound = |i: usize, else_: Option<f32>, none: f32| match node.inputs().get(i).copied().flatten() {
                Some(edge) => wiring.scalar(edge),
                None => Some(else_.unwrap_or(none)),
            };
            let (lo, hi) = (bound(1, min, f32::NEG_INFINITY)?, bound(2, max, f32::INFINITY)?);
            (lo <= hi).then_some(Activation::Clamp { lo, hi })
        }
        _ => None,
    }
}

/// The position of the one input of whose elements the node is a function, finite everywhere, the others being single constants.
fn function_of(node: &Node, wiring: &Wiring<'_>) -> Option<usize> {
    let is_function = match node.layer() {
        Layer::Relu | Layer::Relu6 | Layer::Operator(Operator::Clip(_)) => true,
        Layer::Operator(Operator::Unary(function)) => is_smooth(function),
        Layer::Operator(Operator::Binary(Binary::Add | Binary::Sub | Binary::Mul | Binary::PRelu)) => true,
        Layer::Operator(Operator::Binary(Binary::Div)) => node.inputs()[0].is_some_and(|edge| wiring.constants[edge.index].is_none()),
        _ => false,
    };
    if !is_function {
        return None;
    }
    // One of more axes could give its own to the result.
    let is_number = |value: &Value| value.shape().elements() == 1 && value.shape().rank() <= 1;
    let single = |edge: Edge| wiring.constants[edge.index].is_some_and(is_number);
    let mut others = node.inputs().iter().enumerate().filter_map(|(i, edge)| edge.filter(|&edge| !single(edge)).map(|edge| (i, edge)));
    match (others.next(), others.next()) {
        (Some((at, edge)), None) if wiring.constants[edge.index].is_none() => Some(at),
        _ => None,
    }
}

/// The position of the one input that the node holds below, or above, a constant of numbers.
fn bounded(node: &Node, wiring: &Wiring<'_>) -> Option<usize> {
    let (Layer::Operator(Operator::Variadic(Variadic::Min | Variadic::Max)), &[Some(a), Some(b)]) = (node.layer(), node.inputs()) else {
        return None;
    };
    let is_number =
        |edge: Edge| matches!(wiring.constants[edge.index], Some(Value::F32(bound)) if bound.as_slice().iter().all(|x| !x.is_nan()));
    match (is_number(a), is_number(b)) {
        (false, true) => Some(0),
        (true, false) => Some(1),
        _ => None,
    }
}

/// Whether a function is finite wherever its argument is.
fn is_smooth(function: &Unary) -> bool {
    !matches!(
        function,
        Unary::Log
            | Unary::Reciprocal
            | Unary::Sqrt
            | Unary::Exp
            | Unary::Sinh
            | Unary::Cosh
            | Unary::Tan
            | Unary::Asin
            | Unary::Acos
            | Unary::Acosh
            | Unary::Atanh
    )
}

/// Operators, by their names in the standard, whose outputs hold elements of their first input and nothing else, whatever they are.
pub(crate) const MOVERS: [&str; 13] = [
    "DepthToSpace",
    "Expand",
    "Flatten",
    "Gather",
    "Identity",
    "Reshape",
    "Slice",
    "SpaceToDepth",
    "Split",
    "Squeeze",
    "Tile",
    "Transpose",
    "Unsqueeze",
];

/// Whether a layer is one of [`MOVERS`], or takes the largest of each window.
pub(super) fn moves(layer: &Layer) -> bool {
    match layer {
        Layer::Flatten { .. } | Layer::MaxPool2d(_) => true,
        Layer::Operator(Operator::Pool(pool)) => pool.is_max(),
        Layer::Operator(operator) => MOVERS.contains(&operator.name()),
        _ => false,
    }
}
