//! What counts and what does not, by example, by property and against a model.

mod bytes;
mod facts;
mod model;
mod support;
mod terms;
