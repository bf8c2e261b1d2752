"""Mail: plain text by SMTP, always over TLS when a password is given. Settings are the server's, not the receiver's.

smtps://user@host:465      TLS from the first byte
smtp://user@host:587       STARTTLS, or nothing is sent
smtp+plain://host:25       without TLS, for a relay in one's own network; takes no password
"""

import smtplib
import ssl
from collections.abc import Callable
from datetime import datetime
from email.message import EmailMessage
from email.utils import format_datetime
from typing import Final

from muster_controller.alerts.errors import TellingFailed
from muster_controller.alerts.smtp import SmtpConfig
from muster_controller.core.alerts.grouping import Body
from muster_controller.db.receiver_store import Receiver

TIMEOUT_S: Final = 20.0


class Mails:
    """Sends mail. Safe from any thread."""

    def __init__(
        self, config: SmtpConfig | None, trust: Callable[[], ssl.SSLContext] = ssl.create_default_context
    ) -> None:
        """
        Args:
            config: None: there is no server for mail.
            trust: whose certificates count.
        """
        self._config = config
        self._trust = trust

    @property
    def is_configured(self) -> bool:
        return self._config is not None

    def send(self, receiver: Receiver, notice: str, body: Body, now: float) -> None:
        """Raises TellingFailed."""
        config = self._config
        if config is None:
            raise TellingFailed(receiver.name, "no mail server; start the controller with --smtp-url")
        message = compose(config.sender, receiver.address, notice, body)
        try:
            with self._connected(config) as smtp:
                if config.password:
                    smtp.login(config.user, config.password)
                smtp.send_message(message)
        except smtplib.SMTPResponseException as error:  # Its text may repeat what we said, so the code alone is told.
            raise TellingFailed(receiver.name, f"the mail server answered {error.smtp_code}") from error
        except smtplib.SMTPRecipientsRefused as error:
            codes = ", ".join(str(code) for code, _ in error.recipients.values())
            raise TellingFailed(receiver.name, f"the mail server refused the address ({codes})") from error
        except (smtplib.SMTPException, OSError) as error:  # ssl.SSLError is an OSError.
            raise TellingFailed(receiver.name, f"the mail server cannot be used ({type(error).__name__})") from error

    def _connected(self, config: SmtpConfig) -> smtplib.SMTP:
        if config.security == "tls":
            return smtplib.SMTP_SSL(config.host, config.port, timeout=TIMEOUT_S, context=self._trust())
        smtp = smtplib.SMTP(config.host, config.port, timeout=TIMEOUT_S)
        if config.security == "starttls":
            try:
                smtp.starttls(context=self._trust())
            except BaseException:
                smtp.close()
                raise
        return smtp


def compose(sender: str, address: str, notice: str, body: Body) -> EmailMessage:
    """Return the message."""
    message = EmailMessage()
    message["From"], message["To"] = sender, address
    message["Subject"] = body.subject
    message["Date"] = format_datetime(datetime.fromisoformat(body.timestamp))
    message["Message-ID"] = f"<{notice}@{sender.rpartition('@')[2]}>"  # The same for every try.
    message["Auto-Submitted"] = "auto-generated"  # RFC 3834: no out-of-office answers.
    message.set_content(body.text)
    return message
