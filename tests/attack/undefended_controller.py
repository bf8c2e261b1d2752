"""Runs the controller with a defence off, as `undefended` does with the agent: `python -m` this, then `serve`."""

from attack.defences import CONTROLLER


def main() -> None:
    CONTROLLER.switch_off()
    from muster_controller.cli.main import main as controller

    controller()


if __name__ == "__main__":
    main()
