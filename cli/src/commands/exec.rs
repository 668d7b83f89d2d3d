//! `tranship exec`.

use tokio::io::AsyncReadExt;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};
use tranship_proto::v1::{ExecReply, ExecRequest, ExecStart, exec_reply, exec_request};

use super::logs;
use super::root::Session;
use super::spec;
use crate::failure::{DAEMON_FAILED, Failure};
use crate::terminal::{self, RawTerminal};

/// Requests under way to the daemon: a fast typist's, or 16 blocks of a pipe's.
const QUEUE: usize = 16;

/// Bytes of stdin in one request.
const BLOCK: usize = 32 << 10;

/// Arguments, with Docker's names.
#[derive(clap::Args)]
pub struct Exec {
    /// Hand stdin on to the command.
    #[arg(short, long)]
    interactive: bool,
    /// Give the command a terminal.
    #[arg(short, long)]
    tty: bool,
    /// NAME=VALUE, or NAME for the value it has here.
    #[arg(short, long, value_name = "VARIABLE")]
    env: Vec<String>,
    /// USER[:GROUP]; the container's without it.
    #[arg(short, long, default_value = "")]
    user: String,
    /// The container's without it.
    #[arg(short, long, default_value = "", value_name = "PATH")]
    workdir: String,
    /// The container, and the command: everything behind the container belongs to it.
    #[arg(required = true, num_args = 2.., trailing_var_arg = true, value_names = ["CONTAINER", "COMMAND"])]
    container_and_command: Vec<String>,
}

impl Exec {
    pub async fn run(self, session: &Session) -> Result<u8, Failure> {
        if self.tty && self.interactive && !terminal::is_terminal() {
            let problem = "stdin is not a terminal: leave -t away".to_owned();
            return Err(Failure::Usage(problem).with_code(DAEMON_FAILED));
        }
        self.converse(session).await.map_err(|failure| {
            let code = failure.docker_code();
            failure.with_code(code)
        })
    }

    async fn converse(self, session: &Session) -> Result<u8, Failure> {
        let (interactive, tty) = (self.interactive, self.tty);
        let mut client = session.client().await?;
        let (sender, receiver) = mpsc::channel(QUEUE);
        send(&sender, exec_request::Part::Start(self.into_start()?)).await;
        // Raw only once the daemon has taken the request: an error before that is told on a sane terminal.
        let replies = client.exec(ReceiverStream::new(receiver)).await?.into_inner();
        let _raw = match tty && interactive {
            true => Some(RawTerminal::enter().map_err(Failure::local("cannot use the terminal"))?),
            false => None,
        };
        let input = async {
            if interactive {
                send_stdin(&sender).await;
            } else if !tty {
                // The end of input is a key on a terminal, which nobody has pressed.
                send(&sender, exec_request::Part::StdinEnd(true)).await;
            }
            std::future::pending::<Failure>().await
        };
        tokio::select! {
            code = show(replies) => code,
            // Neither ends before the command does, unless it fails.
            failure = input => Err(failure),
            failure = send_sizes(&sender, tty) => Err(failure),
        }
    }

    fn into_start(self) -> Result<ExecStart, Failure> {
        let mut words = self.container_and_command.into_iter();
        Ok(ExecStart {
            name: words.next().unwrap_or_default(),
            command: words.collect(),
            tty: self.tty,
            interactive: self.interactive,
            env: spec::environment(&[], &self.env)?,
            user: self.user,
            workdir: self.workdir,
            size: if self.tty { terminal::size() } else { None },
        })
    }
}

/// Prints until the exit code arrives.
async fn show(mut replies: Streaming<ExecReply>) -> Result<u8, Failure> {
    while let Some(reply) = replies.next().await {
        match reply?.part {
            Some(exec_reply::Part::Stdout(bytes)) => logs::write(false, &bytes)?,
            Some(exec_reply::Part::Stderr(bytes)) => logs::write(true, &bytes)?,
            Some(exec_reply::Part::ExitCode(code)) => return Ok(u8::try_from(code).unwrap_or(u8::MAX)),
            None => {}
        }
    }
    let lost = "the daemon ended the conversation before the command: whether it still runs is unknown";
    Err(Failure::Daemon(Box::new(Status::unknown(lost))))
}

async fn send(sender: &mpsc::Sender<ExecRequest>, part: exec_request::Part) {
    // A receiver that is gone means that the call has ended; its answer says why.
    let _ = sender.send(ExecRequest { part: Some(part) }).await;
}

async fn send_stdin(sender: &mpsc::Sender<ExecRequest>) {
    let mut stdin = tokio::io::stdin();
    let mut block = vec![0; BLOCK];
    // A stdin that cannot be read has ended as far as the command is concerned.
    while let Ok(length @ 1..) = stdin.read(&mut block).await {
        send(sender, exec_request::Part::Stdin(block[..length].to_vec())).await;
    }
    send(sender, exec_request::Part::StdinEnd(true)).await;
}

/// Tells each change of the terminal's size, for ever; the answer is why it cannot.
async fn send_sizes(sender: &mpsc::Sender<ExecRequest>, tty: bool) -> Failure {
    if !tty {
        return std::future::pending().await;
    }
    let mut changes = match signal(SignalKind::window_change()) {
        Ok(changes) => changes,
        Err(error) => return Failure::local("cannot listen for the terminal's size")(error),
    };
    while changes.recv().await.is_some() {
        if let Some(size) = terminal::size() {
            send(sender, exec_request::Part::Resize(size)).await;
        }
    }
    std::future::pending().await
}
