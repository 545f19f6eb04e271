//! Whole journeys: the real `agora`, real components, what an operator sees. One file a journey.

mod bump;
mod crash;
mod decisions;
mod delegation;
mod ending;
mod fakes;
mod grants;
mod harness;
mod hostile;
mod kill;
mod quiet;
mod reactors;
mod scaffold;
mod services;
mod strangers;
