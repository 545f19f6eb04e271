//! `folder-service FOLDER SOCKET`: serves a folder on a unix socket until it is stopped.

use std::path::Path;
use std::process::ExitCode;

use capnp_rpc::{RpcSystem, rpc_twoparty_capnp::Side, twoparty::VatNetwork};
use folder_service::folder::Folder;
use folder_service::folder_capnp;
use tokio::net::{UnixListener, UnixStream};
use tokio_util::compat::{TokioAsyncReadCompatExt, TokioAsyncWriteCompatExt};

/// Connections served at once; more wait in the socket.
const CONNECTIONS_MAX: usize = 256;

fn main() -> ExitCode {
    let args: Vec<_> = std::env::args_os().skip(1).collect();
    let [folder, socket] = &args[..] else {
        eprintln!("usage: folder-service FOLDER SOCKET");
        return ExitCode::from(2);
    };
    let served = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .and_then(|runtime| {
            let local = tokio::task::LocalSet::new();
            local.block_on(&runtime, serve(Path::new(folder), Path::new(socket)))
        });
    match served {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("folder-service: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn serve(folder: &Path, socket: &Path) -> std::io::Result<()> {
    let folder: folder_capnp::folder::Client = capnp_rpc::new_client(Folder::open(folder)?);
    // What an earlier run left behind is no listener's; one that still listens is left alone.
    if UnixStream::connect(socket).await.is_err() && is_socket(socket) {
        std::fs::remove_file(socket)?;
    }
    let listener = UnixListener::bind(socket)?;
    let room = std::sync::Arc::new(tokio::sync::Semaphore::new(CONNECTIONS_MAX));
    loop {
        let place = room.clone().acquire_owned().await;
        let (stream, _) = listener.accept().await?;
        let (read, write) = stream.into_split();
        let network = VatNetwork::new(
            read.compat(),
            write.compat_write(),
            Side::Server,
            capnp::message::ReaderOptions::new(),
        );
        let system = RpcSystem::new(Box::new(network), Some(folder.clone().client));
        tokio::task::spawn_local(async move {
            let _place = place;
            if let Err(error) = system.await {
                eprintln!("folder-service: {error}");
            }
        });
    }
}

fn is_socket(path: &Path) -> bool {
    use std::os::unix::fs::FileTypeExt;
    std::fs::symlink_metadata(path).is_ok_and(|found| found.file_type().is_socket())
}
