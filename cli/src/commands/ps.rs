//! `tranship ps`.

use tranship_proto::v1::{Container, ContainerState, ListContainersRequest};

use super::root::Session;
use crate::failure::Failure;
use crate::output::Columns;
use crate::{json, units};

/// Digits of an id that are shown: enough to tell one from another.
const SHORT: usize = 12;

/// Arguments.
#[derive(clap::Args)]
pub struct Ps {
    /// Also those that do not run.
    #[arg(short, long)]
    all: bool,
    /// Do not shorten ids and commands.
    #[arg(long)]
    no_trunc: bool,
}

impl Ps {
    pub async fn run(self, session: &Session) -> Result<(), Failure> {
        let request = ListContainersRequest { all: self.all };
        let containers = session
            .client()
            .await?
            .list_containers(request)
            .await?
            .into_inner()
            .containers;
        let length = if self.no_trunc { usize::MAX } else { SHORT };
        let columns = Columns {
            headings: &[
                "CONTAINER ID",
                "IMAGE",
                "COMMAND",
                "CREATED",
                "STATUS",
                "ADDRESS",
                "NAMES",
            ],
            cells: &|container: &Container| self.cells(container, length),
            key: &|container: &Container| shortened(&container.id, length),
        };
        session.output.list(&containers, &columns)
    }

    fn cells(&self, container: &Container, length: usize) -> Vec<String> {
        let spec = container.spec.clone().unwrap_or_default();
        let words: Vec<_> = spec
            .entrypoint
            .iter()
            .chain(&spec.command)
            .map(String::as_str)
            .collect();
        let command = words.join(" ");
        let command = if self.no_trunc {
            command
        } else {
            ellipsis(&command, 24)
        };
        vec![
            shortened(&container.id, length),
            spec.image,
            if command.is_empty() {
                "-".to_owned()
            } else {
                format!("{command:?}")
            },
            units::show_age(container.created_ms),
            status(container),
            if container.ip.is_empty() {
                "-".to_owned()
            } else {
                container.ip.clone()
            },
            spec.name,
        ]
    }
}

/// The first digits of an id.
pub fn shortened(id: &str, length: usize) -> String {
    id.chars().take(length).collect()
}

/// The state in Docker's words.
fn status(container: &Container) -> String {
    match container.state() {
        ContainerState::Running => match units::show_age(container.started_ms).strip_suffix(" ago") {
            Some(span) => format!("Up {span}"),
            None => "Up".to_owned(),
        },
        ContainerState::Exited => {
            format!(
                "Exited ({}) {}",
                container.exit_code,
                units::show_age(container.finished_ms)
            )
        }
        ContainerState::Moved => format!("Moved to {}", container.moved_to),
        ContainerState::InDoubt => "In doubt".to_owned(),
        _ => {
            let word = json::state(container.state);
            let mut letters = word.chars();
            letters
                .next()
                .map_or_else(String::new, |first| first.to_uppercase().chain(letters).collect())
        }
    }
}

fn ellipsis(text: &str, length: usize) -> String {
    if text.chars().count() <= length {
        return text.to_owned();
    }
    text.chars().take(length - 1).chain(['…']).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn states_read_as_dockers_do() {
        let status = |state: ContainerState| {
            let container = Container {
                state: state.into(),
                exit_code: 3,
                moved_to: "b".to_owned(),
                ..Container::default()
            };
            status(&container)
        };
        assert_eq!(status(ContainerState::Exited), "Exited (3) never");
        assert_eq!(status(ContainerState::Moved), "Moved to b");
        assert_eq!(status(ContainerState::Paused), "Paused");
        assert_eq!(status(ContainerState::InDoubt), "In doubt");
    }

    #[test]
    fn long_commands_are_cut_between_letters() {
        assert_eq!(ellipsis("äöü", 3), "äöü");
        assert_eq!(ellipsis("äöüß", 3), "äö…");
    }
}
