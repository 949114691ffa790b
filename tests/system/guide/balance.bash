curl -X GET "http://localhost:8081/user/points/consumption/balance" \
-H "Authorization: Bearer YOUR_JWT_TOKEN"
