//! An ONNX graph while it is written: operators, their values' names, and the tensors that they read.

use crate::Error;
use crate::proto::{AttributeProto, FLOAT, GraphProto, INT64, NodeProto, TensorProto};
use candle_core::{DType, Device, Tensor};
use std::collections::HashSet;
use zoo_core::VarStore;

/// Everything written so far.
pub struct Builder<'a> {
    store: &'a VarStore,
    pub graph: GraphProto,
    /// Names of values, of tensors and of steps.
    taken: HashSet<String>,
    /// The tensors that are there already, by name.
    stored: HashSet<String>,
    /// Bytes of the tensors.
    pub size: usize,
}

impl<'a> Builder<'a> {
    pub fn new(name: &str, store: &'a VarStore) -> Self {
        let graph = GraphProto { name: name.into(), ..GraphProto::default() };
        Self { store, graph, taken: HashSet::new(), stored: HashSet::new(), size: 0 }
    }

    /// A name that nothing has yet: `wanted`, or that with a number behind it.
    pub fn name(&mut self, wanted: &str) -> String {
        let mut name = wanted.to_string();
        let mut n = 1;
        while !self.taken.insert(name.clone()) {
            n += 1;
            name = format!("{wanted}_{n}");
        }
        name
    }

    /// Writes an operator with one output, and returns the output's name.
    pub fn op(
        &mut self,
        (op_type, name): (&str, &str),
        inputs: &[&str],
        attribute: impl IntoIterator<Item = AttributeProto>,
    ) -> String {
        let name = self.name(name);
        self.graph.node.push(NodeProto {
            input: inputs.iter().map(ToString::to_string).collect(),
            output: vec![name.clone()],
            name: name.clone(),
            op_type: op_type.into(),
            attribute: attribute.into_iter().collect(),
        });
        name
    }

    /// Writes an operator of one input whose output has the name `output`.
    pub fn op_named(&mut self, op_type: &str, input: &str, output: &str) {
        self.graph.node.push(NodeProto {
            input: vec![input.into()],
            output: vec![output.into()],
            name: output.into(),
            op_type: op_type.into(),
            attribute: Vec::new(),
        });
    }

    /// [`op`](Self::op) for an operator with several outputs.
    pub fn op_of_many(
        &mut self,
        (op_type, name): (&str, &str),
        inputs: &[&str],
        outputs: usize,
        axis: i64,
    ) -> Vec<String> {
        let name = self.name(name);
        let outputs: Vec<String> = (0..outputs).map(|i| self.name(&format!("{name}.{i}"))).collect();
        self.graph.node.push(NodeProto {
            input: inputs.iter().map(ToString::to_string).collect(),
            output: outputs.clone(),
            name,
            op_type: op_type.into(),
            attribute: vec![AttributeProto::int("axis", axis)],
        });
        outputs
    }

    fn store_raw(&mut self, name: &str, dims: &[usize], data_type: i32, raw_data: Vec<u8>) {
        self.size += raw_data.len();
        let dims = dims.iter().map(|&n| n as i64).collect();
        self.graph.initializer.push(TensorProto { dims, data_type, name: name.into(), raw_data });
    }

    fn store_tensor(&mut self, name: &str, tensor: &Tensor) -> Result<(), Error> {
        let values = tensor.to_device(&Device::Cpu)?.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>()?;
        self.store_raw(name, tensor.dims(), FLOAT, values.iter().flat_map(|x| x.to_le_bytes()).collect());
        Ok(())
    }

    /// The network's tensor under `key`.
    pub fn tensor(&self, key: &str) -> Result<Tensor, Error> {
        let slot = self.store.get(key).ok_or_else(|| Error::NoTensor(key.into()))?;
        let var = slot.var.ok_or_else(|| Error::NoTensor(key.into()))?;
        Ok(var.as_detached_tensor())
    }

    /// Whether the network has a tensor under `key`.
    pub fn has(&self, key: &str) -> bool {
        self.store.get(key).is_some()
    }

    /// Stores the network's tensor under `key`, once, and returns its name in the file, which is its key.
    pub fn weight(&mut self, key: &str) -> Result<String, Error> {
        self.weight_as(key, key, Ok)
    }

    /// Stores what `turn` makes of the network's tensor under `key`, once, as `name`.
    pub fn weight_as(
        &mut self,
        key: &str,
        name: &str,
        turn: impl FnOnce(Tensor) -> candle_core::Result<Tensor>,
    ) -> Result<String, Error> {
        if self.stored.insert(name.to_string()) {
            let tensor = turn(self.tensor(key)?)?;
            self.store_tensor(name, &tensor)?;
        }
        Ok(name.to_string())
    }

    /// Stores numbers, and returns their name.
    pub fn numbers(&mut self, name: &str, dims: &[usize], values: &[f32]) -> String {
        let name = self.name(name);
        self.store_raw(&name, dims, FLOAT, values.iter().flat_map(|x| x.to_le_bytes()).collect());
        name
    }

    /// Stores one number, and returns its name.
    pub fn number(&mut self, name: &str, value: f64) -> String {
        self.numbers(name, &[], &[value as f32])
    }

    /// Stores sizes or places, and returns their name.
    pub fn whole_numbers(&mut self, name: &str, values: &[i64]) -> String {
        let name = self.name(name);
        self.store_raw(&name, &[values.len()], INT64, values.iter().flat_map(|x| x.to_le_bytes()).collect());
        name
    }

    /// Stores one place, a number without dimensions, and returns its name.
    pub fn index(&mut self, name: &str, value: i64) -> String {
        let name = self.name(name);
        self.store_raw(&name, &[], INT64, value.to_le_bytes().to_vec());
        name
    }
}
