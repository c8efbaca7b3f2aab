//! A file's graph, checked: every name is there once, every node stands behind those that it reads from.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, HashSet};

use crate::error::{Error, Result};
use crate::io::onnx::attribute::Attributes;
use crate::io::onnx::format_error;
use crate::io::onnx::opset::opset;
use crate::io::onnx::schema::{GraphProto, ModelProto, NodeProto, ValueInfoProto};
use crate::io::onnx::tensor::{Places, element_type, value};
use crate::nn::Dim;
use crate::tensor::{DType, Value};

/// What a file says.
#[derive(Debug)]
pub struct Graph {
    /// Version of the operators of `ai.onnx`.
    pub opset: i64,
    /// What a run has to give. An input that has an initializer is no input, but a constant.
    pub inputs: Vec<Input>,
    /// Constants by name.
    pub initializers: Vec<(String, Value)>,
    /// In an order in which they can run.
    pub nodes: Vec<Node>,
    /// Names of the values that a run gives.
    pub outputs: Vec<String>,
    /// Domain and name of operators that the file itself defines.
    pub functions: HashSet<(String, String)>,
    /// The first input or initializer of a kind that is not supported, which is missing here: operators that are not either come before it.
    pub refused: Option<Error>,
}

/// An input of a graph.
#[derive(Debug)]
pub struct Input {
    /// Its name.
    pub name: String,
    /// Element type.
    pub dtype: DType,
    /// Lengths of its axes; none when the file doesn't say how many there are.
    pub dims: Option<Vec<Dim>>,
}

/// A node of a graph.
#[derive(Debug)]
pub struct Node {
    /// Its name, or one made of operator and position; no two nodes have the same.
    pub name: String,
    /// The operator.
    pub operator: String,
    /// Where the operator comes from; empty for `ai.onnx`.
    pub domain: String,
    /// Names of the values that it reads; empty where an optional one is left out. The last one is not empty.
    pub inputs: Vec<String>,
    /// Names of the values that it writes; empty where one is not wanted. The last one is not empty.
    pub outputs: Vec<String>,
    /// Its parameters.
    pub attributes: Attributes,
}

/// The graph of a model; `what` names the file in errors.
///
/// # Errors
/// [`Error::Unsupported`] for opsets that are not spoken, [`Error::Duplicate`] for a value
/// with two sources, [`Error::Format`] for everything that is not valid ONNX, within [`Error::Layer`] where a node is concerned.
pub fn graph(model: ModelProto, what: &str, places: &mut Places) -> Result<Graph> {
    let graph = model.graph.ok_or_else(|| format_error(what, "there is no graph in it"))?;
    let opset = opset(&model.opset_import, graph.node.iter().filter_map(|node| node.op_type.as_deref()), what)?;
    let GraphProto { node, initializer, sparse_initializer, input, output, .. } = graph;
    let mut refused = None;
    let mut values = HashSet::new();
    let mut define = |name: &str| match values.insert(name.to_owned()) {
        true => Ok(()),
        false => Err(Error::Duplicate { what: "value", name: name.to_owned() }),
    };

    let mut constant = HashSet::new();
    for sparse in sparse_initializer {
        let name = sparse.values.and_then(|values| values.name).unwrap_or_default();
        if !name.is_empty() {
            define(&name)?;
        }
        constant.insert(name.clone());
        let what = format!("sparse initializer `{name}`");
        refused.get_or_insert(Error::Unsupported { what, way_out: "store it as a dense tensor".into() });
    }
    let mut initializers = Vec::with_capacity(initializer.len());
    for mut tensor in initializer {
        let name = tensor.name.take().filter(|name| !name.is_empty());
        let name = name.ok_or_else(|| format_error(what, "it has an initializer without a name"))?;
        define(&name)?;
        constant.insert(name.clone());
        let value = value(tensor, &format!("initializer `{name}`"), places);
        initializers.extend(spoken(value, &mut refused)?.map(|value| (name, value)));
    }
    let mut inputs = Vec::new();
    for info in input {
        let name = info.name.clone().filter(|name| !name.is_empty());
        let name = name.ok_or_else(|| format_error(what, "it has an input without a name"))?;
        if !constant.contains(name.as_str()) {
            define(&name)?;
            inputs.extend(spoken(declared(name, info), &mut refused)?);
        }
    }

    let mut nodes = Vec::with_capacity(node.len());
    let mut names = NodeNames::new(&node);
    for (index, proto) in node.into_iter().enumerate() {
        let node = named(names.pick(index, &proto), proto, what, places)?;
        node.outputs.iter().filter(|name| !name.is_empty()).try_for_each(|name| define(name))?;
        nodes.push(node);
    }
    for node in &nodes {
        if let Some(missing) = node.inputs.iter().find(|name| !name.is_empty() && !values.contains(*name)) {
            return Err(format_error(what, format!("{} reads `{missing}`, which nothing writes", node.operator))
                .in_node(&node.name, &node.operator));
        }
    }
    let mut outputs = Vec::with_capacity(output.len());
    for info in output {
        let name = info.name.unwrap_or_default();
        if !values.contains(&name) {
            return Err(format_error(what, format!("nothing writes its output `{name}`")));
        }
        outputs.push(name);
    }
    if outputs.is_empty() {
        return Err(format_error(what, "it has no output"));
    }
    let functions = model.functions.into_iter().map(|f| (spoken_domain(f.domain), f.name.unwrap_or_default())).collect();
    Ok(Graph { opset, inputs, initializers, nodes: ordered(nodes, what)?, outputs, functions, refused })
}

/// A part of the graph; none where it is of a kind that is not supported, the first of which is kept.
fn spoken<T>(part: Result<T>, refused: &mut Option<Error>) -> Result<Option<T>> {
    match part {
        Ok(part) => Ok(Some(part)),
        Err(error @ Error::Unsupported { .. }) => {
            refused.get_or_insert(error);
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

/// `ai.onnx` and nothing are the same domain.
fn spoken_domain(domain: Option<String>) -> String {
    domain.filter(|domain| domain != "ai.onnx").unwrap_or_default()
}

fn declared(name: String, info: ValueInfoProto) -> Result<Input> {
    let what = format!("input `{name}`");
    let Some(tensor) = info.r#type.and_then(|declared| declared.tensor_type) else {
        return Err(Error::Unsupported {
            what: format!("{what}, which is no tensor"),
            way_out: "export the model with tensors only".into(),
        });
    };
    let dtype = element_type(tensor.elem_type.unwrap_or(0).into(), &what)?;
    // A length below zero stands for an unknown one, as exporters have it.
    let dims = tensor.shape.map(|shape| {
        let length = |dim: Option<i64>| dim.and_then(|length| usize::try_from(length).ok());
        shape.dim.iter().map(|dim| length(dim.dim_value).map_or(Dim::Any, Dim::Fixed)).collect()
    });
    Ok(Input { name, dtype, dims })
}

/// Hands out names of nodes, no two the same.
struct NodeNames {
    taken: HashSet<String>,
    seen: HashSet<String>,
}

impl NodeNames {
    fn new(nodes: &[NodeProto]) -> Self {
        NodeNames { taken: nodes.iter().filter_map(|node| node.name.clone()).collect(), seen: HashSet::new() }
    }

    fn pick(&mut self, index: usize, node: &NodeProto) -> String {
        let given = node.name.as_deref().unwrap_or_default();
        if !given.is_empty() && self.seen.insert(given.to_owned()) {
            return given.to_owned();
        }
        let base = if given.is_empty() { node.op_type.as_deref().unwrap_or_default() } else { given };
        let mut name = format!("{base}_{index}");
        // A name that another node has, or got before, is made longer until nobody has it.
        while !self.taken.insert(name.clone()) {
            name.push('_');
        }
        name
    }
}

fn named(name: String, proto: NodeProto, what: &str, places: &mut Places) -> Result<Node> {
    let NodeProto { mut input, mut output, op_type, domain, attribute, .. } = proto;
    let operator = op_type.filter(|operator| !operator.is_empty());
    let operator = operator.ok_or_else(|| format_error(what, "a node has no operator").in_layer(&name))?;
    for list in [&mut input, &mut output] {
        while list.pop_if(|name| name.is_empty()).is_some() {}
    }
    let attributes = Attributes::new(&name, &operator, attribute, places)?;
    Ok(Node { name, operator, domain: spoken_domain(domain), inputs: input, outputs: output, attributes })
}

/// The nodes in an order in which they can run, as near to their own as that allows.
fn ordered(nodes: Vec<Node>, what: &str) -> Result<Vec<Node>> {
    let writer: HashMap<&str, usize> =
        nodes.iter().enumerate().flat_map(|(i, node)| node.outputs.iter().map(move |name| (name.as_str(), i))).collect();
    let mut readers = vec![Vec::new(); nodes.len()];
    let mut waiting = vec![0usize; nodes.len()];
    for (i, node) in nodes.iter().enumerate() {
        for &from in node.inputs.iter().filter(|name| !name.is_empty()).filter_map(|name| writer.get(name.as_str())) {
            readers[from].push(i);
            waiting[i] += 1;
        }
    }
    let mut ready: BinaryHeap<Reverse<usize>> = waiting.iter().enumerate().filter(|(_, n)| **n == 0).map(|(i, _)| Reverse(i)).collect();
    let mut order = Vec::with_capacity(nodes.len());
    while let Some(Reverse(i)) = ready.pop() {
        order.push(i);
        for &reader in &readers[i] {
            waiting[reader] -= 1;
            if waiting[reader] == 0 {
                ready.push(Reverse(reader));
            }
        }
    }
    if order.len() < nodes.len() {
        let stuck = waiting.iter().enumerate().find(|(_, waits)| **waits > 0);
        let (name, operator) = stuck.map_or(("", ""), |(i, _)| (&nodes[i].name, &nodes[i].operator));
        return Err(format_error(what, "it waits for a value that it writes itself, if through other nodes").in_node(name, &operator));
    }
    let mut slots: Vec<Option<Node>> = nodes.into_iter().map(Some).collect();
    Ok(order.into_iter().filter_map(|i| slots[i].take()).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::onnx::schema::{
        DimensionProto, FunctionProto, OperatorSetIdProto, SparseTensorProto, TensorProto, TensorShapeProto, TensorTypeProto, TypeProto,
    };

    fn node(operator: &str, inputs: &[&str], outputs: &[&str]) -> NodeProto {
        let names = |list: &[&str]| list.iter().map(|&name| name.to_owned()).collect();
        NodeProto { op_type: Some(operator.into()), input: names(inputs), output: names(outputs), ..Default::default() }
    }

    fn info(name: &str, dims: &[i64]) -> ValueInfoProto {
        let dim = dims.iter().map(|&d| DimensionProto { dim_value: (d != -2).then_some(d), dim_param: None }).collect();
        let tensor_type = TensorTypeProto { elem_type: Some(1), shape: Some(TensorShapeProto { dim }) };
        ValueInfoProto { name: Some(name.into()), r#type: Some(TypeProto { tensor_type: Some(tensor_type) }) }
    }

    fn weight(name: &str) -> TensorProto {
        TensorProto { name: Some(name.into()), dims: vec![1], data_type: Some(1), float_data: vec![0.5], ..Default::default() }
    }

    fn model(nodes: Vec<NodeProto>) -> ModelProto {
        let import = |domain: &str, version| OperatorSetIdProto { domain: Some(domain.into()), version: Some(version) };
        ModelProto {
            ir_version: Some(8),
            opset_import: vec![import("com.microsoft", 1), import("", 13)],
            graph: Some(GraphProto {
                node: nodes,
                initializer: vec![weight("w")],
                input: vec![info("x", &[-2, 3, -1, 0]), info("w", &[1])],
                output: vec![info("y", &[])],
                ..Default::default()
            }),
            ..Default::default()
        }
    }

    fn read(model: ModelProto) -> Result<Graph> {
        graph(model, "input", &mut Places::default())
    }

    fn names(graph: &Graph) -> Vec<&str> {
        graph.nodes.iter().map(|node| node.name.as_str()).collect()
    }

    #[test]
    fn a_graph_as_it_is() {
        let mut add = node("Add", &["x", "w", "", ""], &["y", ""]);
        add.domain = Some("ai.onnx".into());
        let mut model = model(vec![add]);
        model.functions = vec![FunctionProto { name: Some("F".into()), domain: Some("local".into()) }];
        let graph = read(model).unwrap();
        assert_eq!((graph.opset, graph.outputs.as_slice()), (13, &["y".to_owned()][..]));
        let [input] = graph.inputs.as_slice() else { panic!("{:?}", graph.inputs) };
        assert_eq!((input.name.as_str(), input.dtype), ("x", DType::F32));
        assert_eq!(input.dims.as_deref(), Some(&[Dim::Any, Dim::Fixed(3), Dim::Any, Dim::Fixed(0)][..]));
        let [(name, value)] = graph.initializers.as_slice() else { panic!() };
        assert_eq!((name.as_str(), value.get::<f32>().unwrap().as_slice()), ("w", &[0.5][..]));
        let add = &graph.nodes[0];
        assert_eq!((add.operator.as_str(), add.domain.as_str()), ("Add", ""));
        assert_eq!((add.inputs.as_slice(), add.outputs.as_slice()), (&["x".to_owned(), "w".to_owned()][..], &["y".to_owned()][..]));
        assert!(graph.functions.contains(&("local".to_owned(), "F".to_owned())));
    }

    #[test]
    fn nodes_get_names_and_an_order_in_which_they_can_run() {
        let mut named = node("Relu", &["b"], &["c"]);
        named.name = Some("Relu_2".into());
        let mut again = node("Relu", &["c"], &["d"]);
        again.name = Some("Relu_2".into());
        let nodes = vec![node("Add", &["d", "a"], &["y"]), named, node("Relu", &["x"], &["a"]), node("Relu", &["a"], &["b"]), again];
        let graph = read(model(nodes)).unwrap();
        assert_eq!(names(&graph), ["Relu_2_", "Relu_3", "Relu_2", "Relu_2_4", "Add_0"]);
        // In an order of their own nodes stay as they are.
        let nodes = vec![node("B", &["x"], &["b"]), node("A", &["x"], &["a"]), node("Add", &["a", "b"], &["y"])];
        assert_eq!(names(&read(model(nodes)).unwrap()), ["B_0", "A_1", "Add_2"]);
    }

    #[test]
    fn graphs_that_no_order_helps_are_refused() {
        let cases = [
            ("a cycle", vec![node("Relu", &["x"], &["y"]), node("Add", &["x", "b"], &["a"]), node("Relu", &["a"], &["b"])], "`Add_1`"),
            ("itself", vec![node("Relu", &["y"], &["y"])], "`Relu_0`"),
            ("nothing writes it", vec![node("Relu", &["z"], &["y"])], "`z`"),
            ("no operator", vec![node("", &["x"], &["y"])], "no operator"),
            ("nothing writes the output", vec![node("Relu", &["x"], &["z"])], "`y`"),
        ];
        for (what, nodes, name) in cases {
            let error = read(model(nodes)).unwrap_err();
            assert!(matches!(error.kind(), Error::Format { .. }) && error.to_string().contains(name), "{what}: {error}");
        }
        for twice in [vec![node("Relu", &["x"], &["y"]); 2], vec![node("Relu", &["x"], &["x"])], vec![node("Split", &["x"], &["y", "y"])]] {
            assert!(matches!(read(model(twice)).unwrap_err(), Error::Duplicate { what: "value", .. }));
        }
        let mut twice = model(vec![node("Relu", &["x"], &["y"])]);
        twice.graph.as_mut().unwrap().initializer.push(weight("w"));
        assert!(matches!(read(twice).unwrap_err(), Error::Duplicate { .. }));
    }

    #[test]
    fn parts_that_are_missing_or_not_spoken() {
        let changed = |change: fn(&mut GraphProto)| {
            let mut model = model(vec![node("Relu", &["x"], &["y"])]);
            change(model.graph.as_mut().unwrap());
            read(model)
        };
        let formats: [fn(&mut GraphProto); 4] = [
            |g| g.input[0].name = None,
            |g| g.initializer[0].name = None,
            |g| g.output.clear(),
            |g| g.input[0].r#type.as_mut().unwrap().tensor_type.as_mut().unwrap().elem_type = Some(77),
        ];
        for change in formats {
            assert!(matches!(changed(change), Err(Error::Format { .. })));
        }
        let unsupported: [fn(&mut GraphProto); 5] = [
            |g| g.sparse_initializer = vec![Default::default(); 2],
            // The default of an input.
            |g| g.sparse_initializer.push(SparseTensorProto { values: Some(weight("x")) }),
            |g| g.input[0].r#type = None,
            |g| g.input[0].r#type.as_mut().unwrap().tensor_type = None,
            |g| g.initializer[0].data_type = Some(8),
        ];
        for change in unsupported {
            assert!(matches!(changed(change).unwrap().refused, Some(Error::Unsupported { .. })));
        }
        assert!(matches!(read(ModelProto { graph: None, ..model(vec![]) }), Err(Error::Format { .. })));
        let unranked = changed(|g| g.input[0].r#type.as_mut().unwrap().tensor_type.as_mut().unwrap().shape = None).unwrap();
        assert!(unranked.inputs[0].dims.is_none());
    }
}
