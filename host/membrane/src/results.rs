//! Where a callee writes its answer.
//!
//! In: what the callee writes.
//! Promise: the answer is delivered when the callee lets go of it, if the call is still wanted then; the caller's side
//! never shares memory with a callee that is still writing.
//! Failure: an answer nobody wants any more is dropped.

use crate::message::Message;
use capnp::any_pointer;
use capnp::capability::Promise;
use capnp::private::capability::{PipelineHook, RequestHook, ResultsHook};
use std::rc::Weak;

/// Whoever waits for the results of one call.
pub(crate) trait Recipient {
    /// The results, with capabilities as the callee holds them.
    fn deliver(&self, results: Message);
    /// What the results hold so far is all the capabilities they will hold.
    fn set_pipeline(&self, so_far: &mut Message) -> capnp::Result<()>;
}

pub(crate) struct Results {
    message: Option<Message>,
    recipient: Weak<dyn Recipient>,
}

impl Results {
    pub(crate) fn new(recipient: Weak<dyn Recipient>) -> Results {
        Results {
            message: Some(Message::blank(None)),
            recipient,
        }
    }

    fn message(&mut self) -> &mut Message {
        self.message.as_mut().expect("only drop takes the message")
    }
}

impl ResultsHook for Results {
    fn get(&mut self) -> capnp::Result<any_pointer::Builder<'_>> {
        self.message().builder()
    }

    fn set_pipeline(&mut self) -> capnp::Result<()> {
        match self.recipient.upgrade() {
            Some(recipient) => recipient.set_pipeline(self.message()),
            None => Ok(()),
        }
    }

    /// Calls can always be cancelled.
    fn allow_cancellation(&self) {}

    fn tail_call(self: Box<Self>, request: Box<dyn RequestHook>) -> Promise<(), capnp::Error> {
        self.direct_tail_call(request).0
    }

    fn direct_tail_call(
        mut self: Box<Self>,
        request: Box<dyn RequestHook>,
    ) -> (Promise<(), capnp::Error>, Box<dyn PipelineHook>) {
        let sent = request.send();
        let answered = Promise::from_future(async move {
            let response = sent.promise.await?;
            self.get()?.set_as(response.get()?)
        });
        (answered, sent.pipeline.hook)
    }
}

impl Drop for Results {
    fn drop(&mut self) {
        if let (Some(message), Some(recipient)) = (self.message.take(), self.recipient.upgrade()) {
            recipient.deliver(message);
        }
    }
}
