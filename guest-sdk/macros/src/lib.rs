//! `#[agora_guest::main]`: turns an async function into an agent's entry point.

use proc_macro::{TokenStream, TokenTree};

/// Makes `async fn NAME(graft: Graft) -> Result<(), Error>` the agent's entry point.
///
/// The function is left as it is; the component's `run` export is written beside it. The crate must be a `cdylib`.
#[proc_macro_attribute]
pub fn main(attribute: TokenStream, item: TokenStream) -> TokenStream {
    if !attribute.is_empty() {
        return error("#[agora_guest::main] takes no arguments");
    }
    let mut tokens = item.clone().into_iter();
    let mut is_async = false;
    let name = loop {
        match tokens.next() {
            Some(TokenTree::Ident(word)) if word.to_string() == "async" => is_async = true,
            Some(TokenTree::Ident(word)) if word.to_string() == "fn" => match tokens.next() {
                Some(TokenTree::Ident(name)) => break name.to_string(),
                _ => return error("#[agora_guest::main] expects a named function"),
            },
            Some(_) => {}
            None => return error("#[agora_guest::main] goes on a function"),
        }
    };
    if !is_async {
        return error("#[agora_guest::main] expects an `async fn` that takes a Graft");
    }
    let export: TokenStream = format!("::agora_guest::__export!({name});")
        .parse()
        .expect("a path and a macro call are valid tokens");
    item.into_iter().chain(export).collect()
}

fn error(message: &str) -> TokenStream {
    format!("::core::compile_error!({message:?});")
        .parse()
        .expect("a string literal in a macro call is valid tokens")
}
